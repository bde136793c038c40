"""Diffusion models of other libraries."""

from abc import ABC, abstractmethod

from dng_lightning.pretrained.model_parts import ModelParts


class PretrainedModel(ABC):
    """Says where a model of another library is, and what its files leave open.

    Attributes:
        path: a file, a folder, or a model of the Hugging Face hub.
    """

    path: str

    @abstractmethod
    def read(self) -> ModelParts:
        """Read the files.

        Raises:
            SettingError: they are not there, hold something else, or leave open what no setting says.
        """
