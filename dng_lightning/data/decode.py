"""Decodes image files of any bit depth, palette, alpha, colour space and rotation to 8-bit grey or colour."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"])
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
GREY = ("1", "L", "LA", "La", *SIXTEEN_BITS, "I")


def image_files(folder: Path) -> Iterator[Path]:
    """The image files in a folder and its subfolders, by suffix, sorted by name; links are followed.

    Hidden files and folders are skipped, including ``.DS_Store`` and AppleDouble's ``._x``.
    """
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name[0] != ".")  # in place, so that the walk skips the others
        for name in sorted(files):
            if name[0] != "." and f".{name.rpartition('.')[2].lower()}" in SUFFIXES:
                yield Path(place, name)


def decode(source: Path | IO[bytes] | Image.Image, channels: int | None = None) -> Image.Image:
    """Decode an image to 8 bits a channel.

    16-bit grey is divided by 257, transparent pixels are composited on white, and the EXIF rotation is applied.

    Args:
        source: a file, or an image that Pillow opened.
        channels: 1 for grey, 3 for colour; None for 1 if the image is grey, else 3.

    Returns:
        An image of mode L or RGB.

    Raises:
        OSError: the file is truncated, or not an image. Other kinds of damage raise other errors.
        ValueError: the pixels are 32-bit numbers, whose range is unknown.
    """
    image = source if isinstance(source, Image.Image) else Image.open(source)
    channels = channels or (1 if is_grey(image) else 3)
    image.load()
    is_sixteen = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if is_sixteen:
        image = Image.fromarray((np.asarray(image).astype(np.uint32) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit pixels: their range is unknown")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def is_grey(image: Image.Image) -> bool:
    """Whether an image is stored as grey levels, according to its header; a palette of greys counts."""
    if image.mode != "P":
        return image.mode in GREY
    palette = np.frombuffer(image.palette.tobytes() if image.palette else b"", np.uint8)
    colours = palette[: len(palette) // 3 * 3].reshape(-1, 3) if image.palette and image.palette.mode == "RGB" else None
    return colours is not None and bool((colours == colours[:, :1]).all())


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after the EXIF rotation, according to the header."""
    width, height = image.size
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # the EXIF orientations that swap the sides
    return (width, height) if turned else (height, width)
