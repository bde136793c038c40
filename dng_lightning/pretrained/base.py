"""Base class for diffusion models of other libraries."""

from abc import ABC, abstractmethod

from dng_lightning.pretrained.model_parts import ModelParts


class PretrainedModel(ABC):
    """Where a model of another library is, and the settings that its files do not contain.

    Attributes:
        path: a file, a folder, or a model of the Hugging Face hub.
    """

    path: str

    @abstractmethod
    def read(self) -> ModelParts:
        """Read the files.

        Raises:
            SettingError: the files are missing or hold something else, or a setting is missing.
        """
