"""Converts arrays to uint8 images (N, C, H, W) and int64 labels (N,); ambiguous arrays are refused."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dng_lightning.errors import SettingError, reason

Range = tuple[float, float]

CHUNK = 1024  # images converted at a time, which bounds the additional memory
# A range is accepted if the values fill more than half of it, on either side of 0, and do not exceed it.
RANGES: tuple[Range, ...] = ((-1, 1), (0, 1), (0, 255), (0, 65535))
KNOWN: dict[torch.dtype, Range] = {torch.uint8: (0, 255), torch.bool: (0, 1), torch.uint16: (0, 65535)}
TOLERANCE = 1e-3  # share of a range by which rounded floats may exceed it


def as_images(given: Any, where: str, value_range: Range) -> Tensor:
    """Convert images to uint8 (N, C, H, W).

    Args:
        given: array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3, of any number type.
        where: name of the data in messages.
        value_range: the values of black and white, see ``found_range``.

    Raises:
        SettingError: the images have another shape, or values that are not finite or outside the range.
    """
    three_sides(given, where)
    images = _as_tensor(given, where)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    low, high = value_range
    if images.dtype == torch.uint8 and (low, high) == (0, 255):
        return images
    edge = TOLERANCE * (high - low)
    pixels = torch.empty(images.shape, dtype=torch.uint8)
    for values, target in zip(_chunks(images, where), torch.split(pixels, CHUNK), strict=True):
        if not bool(((values >= low - edge) & (values <= high + edge)).all()):
            raise SettingError(f"{where}: there are values outside {low:g} to {high:g}: set data.value_range")
        target.copy_(((values - low) * (255 / (high - low))).round().clamp(0, 255))
    return pixels


def found_range(given: Any, where: str) -> Range:
    """The values of black and white: 0..255 for uint8, 0..65535 for uint16, else the range that the values fill.

    Args:
        given: see ``as_images``.
        where: see ``as_images``.

    Returns:
        -1..1, 0..1, 0..255 or, for integers, 0..65535; an inferred range is printed.

    Raises:
        SettingError: the values fill none of these ranges, or are not finite.
    """
    images = _as_tensor(given, where)
    if images.dtype in KNOWN or not images.numel():
        return KNOWN.get(images.dtype, (0, 255))
    ends = [(float(chunk.min()), float(chunk.max())) for chunk in _chunks(images, where)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    for black, white in RANGES:
        edge = TOLERANCE * (white - black)
        fills = high > white / 2 and (low < black / 2 if black < 0 else low >= 0)
        whole = white <= 255 or not images.is_floating_point()
        if fills and whole and black - edge <= low and high <= white + edge:
            rank_zero_info(f"{where}: values {low:g} to {high:g} are read as {black:g} (black) to {white:g} (white)")
            return black, white
    raise SettingError(
        f"{where}: the meaning of the values {low:g} to {high:g} is unclear: set data.value_range to those of black "
        "and white, such as [0, 1]"
    )


def three_sides(images: Any, where: str) -> tuple[int, int, int]:
    """(C, H, W) of images as ``as_images`` accepts them.

    Raises:
        SettingError: the images have another shape.
    """
    shape = tuple(np.shape(images))
    match shape:
        case (_, height, width):
            return 1, height, width
        case (_, (1 | 3) as channels, height, width) | (_, height, width, (1 | 3) as channels):
            return channels, height, width
    sizes = "x".join(map(str, shape))
    raise SettingError(f"{where} is {sizes}: images must be (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3")


def _chunks(images: Tensor, where: str) -> Iterator[Tensor]:
    """Parts of the images, float64."""
    for part, chunk in enumerate(torch.split(images, CHUNK)):
        values = chunk.double()
        if len(places := (~values.isfinite()).nonzero()):
            number = part * CHUNK + int(places[0, 0])
            raise SettingError(f"{where}: image {number} has NaN or infinite values: mend or remove such images")
        yield values


def _as_tensor(given: Any, where: str) -> Tensor:
    try:
        array = given if isinstance(given, Tensor) else np.asarray(given)
        native = array if isinstance(array, Tensor) else array.astype(array.dtype.newbyteorder("="), copy=False)
        images = torch.as_tensor(native)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{where} holds no images: {reason(error)}") from error
    if images.is_complex():
        raise SettingError(f"{where} holds no images: {images.dtype}")
    return images


def as_labels(given: Any, images: int, where: str) -> np.ndarray[Any, Any]:
    """Convert labels to an array (N,) of int64, or of strings if they are names.

    Args:
        given: (N,) or (N, 1) whole numbers of any type or names, or one-hot (N, K).
        images: N.
        where: name of the data in messages.

    Raises:
        SettingError: the number of labels is not N, or the labels are invalid.
    """
    labels = given.cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if len(labels.shape) not in (1, 2) or len(labels) != images:
        raise SettingError(f"{where} has labels {'x'.join(map(str, labels.shape))} for {images:,} images")
    if labels.ndim == 2:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise SettingError(f"{where} has labels {len(labels)}x{labels.shape[1]} that are not one-hot")
        labels = labels.argmax(1)
    if labels.dtype.kind in "SUO":
        return labels.astype(str)
    if labels.dtype.kind not in "biuf" or not (labels == np.floor(labels)).all():
        raise SettingError(f"{where} has labels that are neither whole numbers nor names")
    return labels.astype(np.int64)


def in_classes(labels: np.ndarray[Any, Any], classes: int, where: str) -> Tensor:
    """Labels as int64 (N,), all of them in 0..classes - 1.

    Raises:
        SettingError: a label is not, or the labels are names.
    """
    if labels.dtype.kind == "U":
        raise SettingError(f"{where} has names for labels: give their numbers in class_names")
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or high >= max(classes, 1):
        raise SettingError(f"{where} has labels {low} to {high}: {classes} classes have labels 0 to {classes - 1}")
    return torch.from_numpy(labels)


def numbered(labels: np.ndarray[Any, Any], names: Sequence[str] | None, where: str) -> tuple[tuple[str, ...], Tensor]:
    """Convert labels of any values to class indices.

    Args:
        labels: labels of all parts from ``as_labels``, (N,).
        names: class names, in the order of the labels; None if the labels are the names.
        where: name of the data in messages.

    Returns:
        the class names, and the class indices, int64 (N,).

    Raises:
        SettingError: the names do not match the labels, or a name occurs twice.
    """
    distinct, numbers = np.unique(labels, return_inverse=True)
    if names is None:
        return tuple(map(str, distinct)), torch.from_numpy(numbers)
    if len(set(names)) < len(names):
        raise SettingError(f"data.names has a class twice: {', '.join(names)}")
    if set(distinct.tolist()) <= set(range(len(names))):  # some classes may have no image
        return tuple(names), torch.from_numpy(labels)
    if len(names) != len(distinct):
        shown = f"{len(distinct)} labels, from {distinct[0]} to {distinct[-1]}"
        raise SettingError(f"{where} has {shown}, and {len(names)} class names: give one for each")
    return tuple(names), torch.from_numpy(numbers)
