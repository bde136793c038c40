"""Images to the size that a network needs: resized and cropped in the middle, or padded."""

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
    """Height and width of the setting, one number standing for both.

    Raises:
        SettingError: they are no sizes.
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
        fit: ``crop`` fills the size and cuts off what is beyond, evenly on both sides; ``pad`` shows the whole image,
            never enlarged, with black around it.

    Returns:
        the same kind of image, of that size.
    """
    height, width = functional.get_size(image)
    scales = size[0] / height, size[1] / width
    scale = max(scales) if fit == "crop" else min(1.0, *scales)
    if scale != 1:
        resized = [max(round(height * scale), 1), max(round(width * scale), 1)]
        image = functional.resize(image, resized, InterpolationMode.BICUBIC, antialias=True)
    cropped: Picture = functional.center_crop(image, list(size))  # which pads with black where the image is smaller
    return cropped


def all_fitted(images: Tensor, size: Size, fit: Fit) -> Tensor:
    """The same of many, uint8 (N, C, H, W), some at a time."""
    if tuple(images.shape[2:]) == size or not len(images):
        return images
    return torch.cat([fitted(some, size, fit) for some in torch.split(images, CHUNK)])


def random_windows(images: Tensor, size: Size) -> Tensor:
    """A window of each image (B, C, H, W), at a random place drawn from torch's global generator; (B, C, *size)."""
    batch, channels, *full = images.shape
    draws = (torch.randint(outer - inner + 1, (batch, 1)) for outer, inner in zip(full, size, strict=True))
    rows, columns = ((start + torch.arange(side)).to(images.device) for start, side in zip(draws, size, strict=True))
    images = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, full[1]))
    return images.gather(3, columns[:, None, None, :].expand(-1, channels, size[0], -1))
