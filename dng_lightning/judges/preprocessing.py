"""What a classifier is shown of an image, where its own configuration does not say it."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from dng_lightning.errors import SettingError


@dataclass(frozen=True)
class Preprocessing:
    """Resizes an image with values in [0, 1], and standardises its channels: (x - mean) / std.

    Attributes:
        mean: of each channel; [0.485, 0.456, 0.406] is ImageNet's, and 0 with a ``std`` of 1 leaves [0, 1].
        std: of each channel, > 0; [0.229, 0.224, 0.225] is ImageNet's.
        size: side of the square, or [height, width], that the image is resized to; None leaves it as it is.
        interpolation: of the resizing, with antialiasing.
        channels: 3, or 1 for grey.

    Raises:
        SettingError: ``mean`` and ``std`` are not one a channel.
    """

    mean: list[float]
    std: list[float]
    size: int | list[int] | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    channels: int = field(default=3)

    def __post_init__(self) -> None:
        if not (len(self.mean) == len(self.std) == self.channels and all(value > 0 for value in self.std)):
            raise SettingError(f"preprocessing: mean and std must be {self.channels} numbers each, std above 0")

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the network's input."""
        if self.size is not None:
            size = [self.size, self.size] if isinstance(self.size, int) else self.size
            x = functional.resize(x, size, InterpolationMode(self.interpolation), antialias=True)
        standardised: Tensor = functional.normalize(x, self.mean, self.std)
        return standardised
