"""Diffusion models of other libraries: where they are, and their parts that sampling needs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dng_lightning.networks.diffusers import LatentDecoder
from dng_lightning.parametrization import Prediction
from dng_lightning.schedule import NoiseSchedule


@dataclass(frozen=True)
class ModelParts:
    """A diffusion model of another library.

    Attributes:
        net: ``net(x, t, class_labels) -> prediction``, with an attribute ``num_classes``; see ``DiffusionModule``.
        schedule: noise schedule.
        prediction: what the network predicts.
        state_shape: (C, H, W) of the network's images or latents.
        folder: folder of the model, for its calibration and reference statistics.
        clip: bound on the denoised prediction; None for none.
        class_names: class names; empty if the files do not contain them.
        decoder: decoder of the latents; None for a pixel-space network.
    """

    net: nn.Module
    schedule: NoiseSchedule
    prediction: Prediction
    state_shape: tuple[int, int, int]
    folder: Path
    clip: float | None = None
    class_names: tuple[str, ...] = ()
    decoder: LatentDecoder | None = None


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
