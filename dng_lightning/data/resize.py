"""Brings images to the size that a network needs: resized and centre-cropped, or padded."""

from typing import Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from dng_lightning.errors import SettingError

CHUNK = 1024  # images resized at a time

Fit = Literal["crop", "pad"]
Size = tuple[int, int]  # height, width
Picture = TypeVar("Picture", Image.Image, Tensor)


def sides(image_size: int | Size | list[int] | None) -> Size | None:
    """Height and width from the setting; one number is both.

    Raises:
        SettingError: the setting is not a valid size.
    """
    if image_size is None:
        return None
    found = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    if len(found) != 2 or not all(isinstance(side, int) and side >= 1 for side in found):
        raise SettingError(f"data.image_size is {image_size}: give one side, or height and width, at least 1")
    return found[0], found[1]


def fitted(image: Picture, size: Size, fit: Fit) -> Picture:
    """Bring an image to a size without distorting it.

    Args:
        image: one image, or uint8 (N, C, H, W).
        size: height and width.
        fit: ``crop`` resizes the image until it fills the size, and crops it evenly on both sides; ``pad`` keeps the
            whole image, never enlarged, with black borders.

    Returns:
        the image, of the same type and of that size.
    """
    height, width = functional.get_size(image)
    scales = size[0] / height, size[1] / width
    scale = max(scales) if fit == "crop" else min(1.0, *scales)
    if scale != 1:
        resized = [max(round(height * scale), 1), max(round(width * scale), 1)]
        image = functional.resize(image, resized, InterpolationMode.BICUBIC, antialias=True)
    cropped: Picture = functional.center_crop(image, list(size))  # also pads smaller images with black
    return cropped


def all_fitted(images: Tensor, size: Size, fit: Fit) -> Tensor:
    """``fitted`` for many images, uint8 (N, C, H, W), in chunks."""
    if tuple(images.shape[2:]) == size or not len(images):
        return images
    return torch.cat([fitted(some, size, fit) for some in torch.split(images, CHUNK)])


def random_windows(images: Tensor, size: Size) -> Tensor:
    """A random crop of each image (B, C, H, W), by torch's global generator; (B, C, *size)."""
    batch, channels, *full = images.shape
    draws = (torch.randint(outer - inner + 1, (batch, 1)) for outer, inner in zip(full, size, strict=True))
    rows, columns = ((start + torch.arange(side)).to(images.device) for start, side in zip(draws, size, strict=True))
    images = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, full[1]))
    return images.gather(3, columns[:, None, None, :].expand(-1, channels, size[0], -1))
