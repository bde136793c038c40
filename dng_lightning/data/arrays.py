"""Images in array files: NumPy's .npy and .npz, and .pt of tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dng_lightning.data.base import ImageDataModule
from dng_lightning.data.tensors import Range, as_labels, numbered, three_sides
from dng_lightning.errors import SettingError, reason

PARTS = ("train", "val", "test")


@dataclass(eq=False, repr=False)
class Arrays(ImageDataModule):
    """Your own images in one ``.npz``, ``.npy`` or ``.pt`` file.

    A file of several arrays holds the images, those of three or four dimensions, and the labels, those of one or two;
    where their names contain train, val or test, they are of that part. A ``.pt`` holds a tensor, or a dictionary or
    list of tensors; it is read without running code.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3. Labels are whole numbers of any type, names, or
    one-hot; without any there are no classes. Classes are named by their labels, in ascending order.

    Besides the settings of ``ImageDataModule``:

    Args:
        root: the file.
        labels: a file of the labels, ``.npy`` or ``.pt``; None for those in `root`, if there are any.
        names: of the classes, in the order of their labels; None to name them by their labels.
        value_range: the values of black and white; None to find it, which is said in a line. uint8 is 0 to 255.

    Raises:
        SettingError: one line for what is wrong with the file, the images, the labels, or the settings.
    """

    default_val_size = None

    root: str
    labels: str | None = None
    names: list[str] | None = None
    value_range: Range | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise SettingError(f"data.value_range is {list(self.value_range)}: give the values of black and of white")
        self._range = self.value_range

    @property
    def title(self) -> str:
        """With the file, as two files are two data sets."""
        return f"Arrays {self.root}"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """See ``ImageDataModule``."""
        return self._classes[0]

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """See ``ImageDataModule``."""
        return self._shape(*three_sides(self._found["train"][0], self.title))

    @cached_property
    def _found(self) -> dict[str, tuple[Any, Any]]:
        """Images and labels of each part; labels are None where there are none."""
        arrays = _read(self.folder)
        if self.labels is not None:
            arrays |= {"labels": next(iter(_read(Path(self.labels)).values()))}
        found: dict[str, tuple[Any, Any]] = {}
        for part in PARTS:
            its = {name: array for name, array in arrays.items() if _part_of(name) == part}
            images, labels = ([array for array in its.values() if array.ndim in dims] for dims in ((3, 4), (1, 2)))
            if images and len(labels) > 1:  # names of the classes, perhaps
                labels = [array for array in labels if len(array) == len(images[0])]
            if len(images) > 1 or len(labels) > 1:
                held = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in its.items())
                raise SettingError(f"{self.title} has several arrays that could be {part} images or labels: {held}")
            if images:
                found[part] = images[0], as_labels(labels[0], len(images[0]), self.title) if labels else None
        if "train" not in found:
            held = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())
            raise SettingError(f"{self.title} has no array of images: {held}")
        return found

    @cached_property
    def _classes(self) -> tuple[tuple[str, ...], dict[str, Tensor]]:
        """The class names, and the numbers of their labels in each part; nothing where there are none."""
        given = {part: labels for part, (_, labels) in self._found.items() if labels is not None}
        if not given:
            return (), {}
        if len(given) < len(self._found):
            raise SettingError(f"{self.title}: some of its parts have labels, and some have none")
        names, numbers = numbered(np.concatenate(list(given.values())), self.names, self.title)
        return names, dict(zip(given, torch.split(numbers, list(map(len, given.values()))), strict=True))

    def _read(self) -> dict[str, Any]:
        _, labels = self._classes
        return {part: (images, labels.get(part, [0] * len(images))) for part, (images, _) in self._found.items()}


def _part_of(name: str) -> str:
    found = re.search(r"(?<![a-z])(val|valid|validation|test)(?![a-z])", name.lower())  # as a word: not in "values"
    return ("test" if found[1] == "test" else "val") if found else "train"


def _read(path: Path) -> dict[str, Any]:
    """The arrays of a file by name; large ones stay in the file until they are used.

    Raises:
        SettingError: it is missing, damaged, carries code, or holds something else.
    """
    if not path.is_file():
        raise SettingError(f"there is no file {path.absolute()}: name yours with --data.root")
    try:
        if path.suffix in (".pt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        elif path.suffix == ".npy":
            content = np.load(path, mmap_mode="c")
        elif path.suffix == ".npz":
            with np.load(path) as file:
                content = dict(file)
        else:
            raise ValueError("give a .npz, .npy or .pt")
        if isinstance(content, list | tuple):
            content = {str(place): array for place, array in enumerate(content)}
        content = dict(content) if isinstance(content, Mapping) else {"images": content}
        if not content or not all(isinstance(array, Tensor | np.ndarray) for array in content.values()):
            raise ValueError("it holds something else than arrays")
    except Exception as error:  # a foreign file can fail in any way
        raise SettingError(f"{path} cannot be used: {reason(error)}") from error
    return content
