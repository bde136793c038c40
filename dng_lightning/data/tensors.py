"""Arrays as people store them, to uint8 images (N, C, H, W) and int64 labels (N,); what cannot be told is refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dng_lightning.errors import SettingError, reason

Range = tuple[float, float]

CHUNK = 1024  # images converted at a time, so that a set of floats needs little memory besides its own
# A range counts as found where the values reach over the middle of its upper half, and nowhere beyond it.
RANGES: tuple[Range, ...] = ((-1, 1), (0, 1), (0, 255), (0, 65535))
TOLERANCE = 1e-3  # of a range: floats that overshoot by rounding


def as_images(given: Any, where: str, value_range: Range | None = None) -> Tensor:
    """Convert images to uint8 (N, C, H, W).

    Args:
        given: array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3, of any number type.
        where: what they are called in messages.
        value_range: the values of black and white; None to find it: uint8 is 0..255, uint16 is 0..65535, and others
            must clearly be in -1..1, 0..1, 0..255 or, whole numbers, in 0..65535.

    Raises:
        SettingError: the shape, type or range is none of these.
    """
    try:
        images = given if isinstance(given, Tensor) else torch.from_numpy(np.asarray(given))
    except (TypeError, ValueError) as error:
        raise SettingError(f"{where} are no images: {reason(error)}") from error
    if images.ndim == 3:
        images = images.unsqueeze(1)
    shape = "x".join(map(str, images.shape))
    if images.ndim != 4 or not {images.shape[1], images.shape[3]} & {1, 3}:
        raise SettingError(f"{where} are {shape}: images must be (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3")
    if images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if (images.dtype == torch.uint8 and value_range in (None, (0, 255))) or not len(images):
        return images.to(torch.uint8)
    if images.is_complex():
        raise SettingError(f"{where} are {images.dtype}: images must be numbers")
    low, high = value_range or _found_range(images, where)
    edge = TOLERANCE * (high - low)
    pixels = torch.empty(images.shape, dtype=torch.uint8)
    for source, target in zip(torch.split(images, CHUNK), torch.split(pixels, CHUNK), strict=True):
        values = source.double()
        if not bool(((values >= low - edge) & (values <= high + edge)).all()):  # NaN is not
            raise SettingError(f"{where} have values outside {low:g} to {high:g}, or NaN: set data.value_range")
        target.copy_(((values - low) * (255 / (high - low))).round().clamp(0, 255))
    return pixels


def _found_range(images: Tensor, where: str) -> Range:
    """The range that the values of images of another type than uint8 are in."""
    if images.dtype == torch.bool:
        return 0, 1
    if images.dtype == torch.uint16:
        return 0, 65535
    ends = [(float(part.min()), float(part.max())) for part in (chunk.double() for chunk in torch.split(images, CHUNK))]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if any(end != end for pair in ends for end in pair):
        raise SettingError(f"{where} have values that are no number (NaN)")
    for black, white in RANGES:
        edge = TOLERANCE * (white - black)
        reaches = high > white / 2 and (low < black / 2 if black < 0 else low >= 0)
        whole = white <= 255 or not images.is_floating_point()
        if reaches and whole and black - edge <= low and high <= white + edge:
            rank_zero_info(f"{where}: values {low:g} to {high:g} are read as {black:g} (black) to {white:g} (white)")
            return black, white
    raise SettingError(
        f"{where} have values {low:g} to {high:g}, whose range cannot be told: set data.value_range to the values of "
        "black and white, such as [0, 1]"
    )


def as_labels(given: Any, images: int, where: str) -> np.ndarray[Any, Any]:
    """Convert labels to an array (N,) of int64 or, of names, of strings.

    Args:
        given: (N,) or (N, 1) whole numbers of any type or names, or one-hot (N, K).
        images: N.
        where: what they are called in messages.

    Raises:
        SettingError: they are not as many as the images, or no such labels.
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
        SettingError: one is not.
    """
    if labels.dtype.kind == "U":
        raise SettingError(f"{where} has names for labels: give their numbers in class_names")
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or high >= max(classes, 1):
        raise SettingError(f"{where} has labels {low} to {high}: {classes} classes have labels 0 to {classes - 1}")
    return torch.from_numpy(labels)


def named_classes(labels: np.ndarray[Any, Any], names: Sequence[str] | None, where: str) -> dict[Any, str]:
    """The class that each label stands for: its own name, or in ascending order those given.

    Args:
        labels: (N,) of ``as_labels``, of all parts.
        names: of the classes, in the order of their labels; None where a label is its own name.
        where: what they are called in messages.

    Raises:
        SettingError: there are more labels than names.
    """
    distinct = np.unique(labels).tolist()
    if names is None:
        return {value: str(value) for value in distinct}
    if len(names) < len(distinct):
        raise SettingError(f"{where} has {len(distinct)} labels, {len(names)} class names: name every class")
    if set(distinct) <= set(range(len(names))):
        return dict(enumerate(names))
    if len(names) > len(distinct):
        raise SettingError(f"{where} has labels {distinct[0]} to {distinct[-1]}: which of the {len(names)} classes?")
    return dict(zip(distinct, names, strict=True))
