"""Preprocessing for classifiers whose files do not contain it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from dng_lightning.errors import SettingError


@dataclass(frozen=True)
class Preprocessing:
    """Resizes images with values in [0, 1] and standardises their channels: (x - mean) / std.

    Attributes:
        mean: mean of each channel; ImageNet's is [0.485, 0.456, 0.406]. Mean 0 and std 1 keep [0, 1].
        std: standard deviation of each channel, > 0; ImageNet's is [0.229, 0.224, 0.225].
        size: side of a square, or [height, width], in pixels; None for no resizing.
        interpolation: interpolation of the resizing, with antialiasing.
        channels: 3 for colour, 1 for grey.

    Raises:
        SettingError: ``mean`` or ``std`` does not have one number per channel.
    """

    mean: list[float]
    std: list[float]
    size: int | list[int] | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    channels: int = 3

    def __post_init__(self) -> None:
        if not (len(self.mean) == len(self.std) == self.channels and all(value > 0 for value in self.std)):
            numbers = f"{self.channels} numbers each, as many as preprocessing.channels"
            raise SettingError(f"preprocessing: mean and std must be {numbers}, std above 0")

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the network's input."""
        if self.size is not None:
            size = [self.size, self.size] if isinstance(self.size, int) else self.size
            x = functional.resize(x, size, InterpolationMode(self.interpolation), antialias=True)
        standardised: Tensor = functional.normalize(x, self.mean, self.std)
        return standardised
