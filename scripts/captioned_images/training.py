"""Base class of the trainings of text-to-image models."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn

from dng_lightning.errors import SettingError
from dng_lightning.modules.base_module import reading
from dng_lightning.modules.diffusion import BaseDiffusionModule
from dng_lightning.pretrained import diffusers_format
from dng_lightning.storage import resources
from dng_lightning.text_to_image.pipeline_folder import open_pipeline
from scripts.captioned_images import networks
from scripts.captioned_images.data import Captioned, CaptionedImages


class TextToImageTraining(BaseDiffusionModule):
    """Trains a denoiser and its text encoder on images with captions.

    Attributes:
        learns_from: the class of the images with captions.
        text_encoder: of the captions.
        tokenizer: of the captions' words.
    """

    learns_from: ClassVar[type[CaptionedImages]]
    text_encoder: nn.Module
    tokenizer: Any

    def setup(self, stage: str) -> None:
        """Take over the facts about the data; compile the network if set.

        Raises:
            SettingError: the data are not images with captions.
        """
        data, name = getattr(self.trainer, "datamodule", None), self.learns_from.__name__
        if not isinstance(data, self.learns_from) or data.label != "all":
            raise SettingError(f"a text-to-image model learns from captions: set data to {name}, its label all")
        super().setup(stage)

    def validation_step(self, batch: Captioned, batch_idx: int) -> None:
        """The loss on held-out images."""
        with networks.eager(self.compile_net):
            super().validation_step(batch, batch_idx)

    def start_from(self, name: str) -> None:
        """See ``TrainedModule.start_from``; a pipeline in diffusers' format, as exported, is a checkpoint too."""
        path, own = resources.checkpoint(name), self.pipeline()
        if path.name != diffusers_format.INDEX:
            super().start_from(name)
            return
        trained, folder = open_pipeline(name, "fp32", [type(own).__name__])
        with reading(folder, f"this {type(self).__name__}"):
            for part, network in own.components.items():
                if isinstance(network, nn.Module):
                    network.load_state_dict(getattr(trained, part).state_dict())

    @abstractmethod
    def pipeline(self) -> Any:
        """The pipeline of diffusers' that has these networks, for sampling and for export."""
