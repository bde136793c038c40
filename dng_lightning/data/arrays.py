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

from dng_lightning.data.found import Found, FoundImages
from dng_lightning.data.tensors import Range, as_labels
from dng_lightning.errors import SettingError, reason

PARTS = ("train", "val", "test")


@dataclass(eq=False, repr=False)
class Arrays(FoundImages):
    """Your own images in one ``.npz``, ``.npy`` or ``.pt`` file.

    In a file of several arrays, those of three or four dimensions are images, and those of one or two are labels. An
    array with val, valid, validation or test in its name belongs to that part, any other to train. A ``.pt`` holds a
    tensor, or a dictionary or list of tensors; it is read without running code.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3. Labels are whole numbers of any type, names, or
    one-hot; without any there are no classes. Classes are named by their labels, in ascending order.

    In addition to the settings of ``ImageDataModule``:

    Args:
        root: the file.
        labels: a file of the labels, ``.npy`` or ``.pt``; None for those in `root`, if there are any.
        names: class names, in the order of the labels; None to name the classes by their labels.
        value_range: the values of black and white; None to infer and print the range. uint8 is 0 to 255.

    Raises:
        SettingError: the file, the images, the labels or the settings are invalid.
    """

    root: str
    labels: str | None = None
    names: list[str] | None = None
    value_range: Range | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise SettingError(f"data.value_range is {list(self.value_range)}: give the values of black and of white")
        self._range = self.value_range

    @cached_property
    def _found(self) -> Found:
        arrays = _read(self.folder)
        if self.labels is not None:
            arrays |= {"labels": next(iter(_read(Path(self.labels)).values()))}
        images: dict[str, Any] = {}
        labels: dict[str, Any] = {}
        for part in PARTS:
            its = {name: array for name, array in arrays.items() if _part_of(name) == part}
            pictures, classes = ([array for array in its.values() if array.ndim in dims] for dims in ((3, 4), (1, 2)))
            if pictures and len(classes) > 1:  # one of them may be the class names
                classes = [array for array in classes if len(array) == len(pictures[0])]
            if len(pictures) > 1 or len(classes) > 1:
                raise SettingError(
                    f"{self.title} has several arrays that could be {part} images or labels: {_listed(its)}"
                )
            if pictures:
                images[part] = pictures[0]
            if pictures and classes:
                labels[part] = as_labels(classes[0], len(pictures[0]), self.title)
        if "train" not in images:
            raise SettingError(f"{self.title} has no array of images: {_listed(arrays)}")
        if 0 < len(labels) < len(images):
            raise SettingError(f"{self.title}: some of its parts have labels, and some have none")
        parts = [part for part, pictures in images.items() for _ in range(len(pictures))]
        return Found(images, parts, np.concatenate(list(labels.values())) if labels else None, self.names)


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())


def _part_of(name: str) -> str:
    found = re.search(r"(?<![a-z])(val|valid|validation|test)(?![a-z])", name.lower())  # as a word: not in "values"
    return ("test" if found[1] == "test" else "val") if found else "train"


def _read(path: Path) -> dict[str, Any]:
    """The arrays of a file by name; a ``.npy`` is memory-mapped.

    Raises:
        SettingError: the file is missing or damaged, or contains code or other data than arrays.
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
