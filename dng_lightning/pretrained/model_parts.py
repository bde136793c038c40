"""What sampling needs of a diffusion model, wherever it was trained."""

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
        schedule: its noise levels.
        prediction: what it predicts.
        state_shape: (C, H, W) of what it denoises, images or latents.
        folder: where it lies, and what belongs to it.
        clip: bound on the denoised prediction; None for none.
        class_names: what its classes are called; empty where it does not say.
        decoder: makes images of latents; None for a network of pixels.
    """

    net: nn.Module
    schedule: NoiseSchedule
    prediction: Prediction
    state_shape: tuple[int, int, int]
    folder: Path
    clip: float | None = None
    class_names: tuple[str, ...] = ()
    decoder: LatentDecoder | None = None
