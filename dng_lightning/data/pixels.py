"""Conversion between pixels and network values, the same for real and generated images, metrics and PNG files.

Truncating instead of rounding would shift 63 of the 256 grey levels down by one after a round trip, and a metric that
truncates only one of its two sets would measure that shift.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dng_lightning.data.decode import decode


def to_float(images: Tensor) -> Tensor:
    """Map pixels to network values.

    Args:
        images: uint8 of any shape, 0..255.

    Returns:
        float32 of the same shape in [-1, 1]; 0 becomes -1 and 255 becomes 1.
    """
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Map network values to pixels: clamp, then round to the nearest level. Exact inverse of `to_float`.

    Args:
        x: floating point of any shape and precision; values outside [-1, 1] are clamped.

    Returns:
        uint8 of the same shape, 0..255.
    """
    # In float32, as bfloat16 cannot represent all levels between 128 and 255 plus a half.
    return ((x.to(torch.float32).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_png(pixels: Tensor) -> bytes:
    """Encode one image as PNG, without loss.

    Args:
        pixels: uint8 (C, H, W), C being 1 or 3.
    """
    file = io.BytesIO()
    array = pixels.permute(1, 2, 0).cpu().numpy()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return file.getvalue()


def from_png(file: Path | bytes) -> Tensor:
    """Decode a PNG file, or its content: uint8 (C, H, W), C being 1 for grey and 3 for colour."""
    return from_pillow(decode(io.BytesIO(file) if isinstance(file, bytes) else file))


def from_pillow(image: Image.Image) -> Tensor:
    """The pixels of an image of mode L or RGB: uint8 (C, H, W), C being 1 or 3."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
