"""The parts of a diffusion model of another library that sampling needs."""

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
