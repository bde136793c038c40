"""Adapter of torchvision's image data sets, and of classes with the same interface."""

import contextlib
import importlib
import inspect
import io
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torchvision import datasets

from dng_lightning.data.decoded import DecodedImages
from dng_lightning.data.found import Found
from dng_lightning.data.store import Items
from dng_lightning.data.tensors import as_labels
from dng_lightning.errors import SettingError, reason

LABELS = ("targets", "labels", "_labels", "_targets", "y")  # attributes with the labels in torchvision's classes


@dataclass(eq=False, repr=False)
class TorchvisionDataset(DecodedImages):
    """A torchvision data set by the name of its class: SVHN, STL10, KMNIST, EMNIST, Flowers102, ...

    An array of images is used as it is; the images of other data sets are decoded once.

    In addition to the settings of ``ImageDataModule`` and ``DecodedImages``:

    Args:
        dataset: class of ``torchvision.datasets``, or the import path of another sequence of (image, label) with the
            same interface.
        settings: arguments of the class other than its root, such as ``{split: letters}`` for EMNIST.
        parts: arguments of the class for each part, such as ``{train: {split: trainval}, test: {split: test}}``; None
            for ``train: true`` and ``false`` if the class has ``train``, else ``split: train`` and ``test`` if it has
            ``split``, else one part.

    Raises:
        SettingError: the class does not exist or cannot be instantiated, its files are missing, or its labels are not
            classes.
    """

    dataset: str = field(kw_only=True)
    settings: dict[str, Any] | None = None
    parts: dict[str, dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kind, self.arguments = _class(self.dataset), self.settings or {}
        self.given = self.parts or _default_parts(self.kind)
        if "train" not in self.given or not {*self.given} <= {"train", "val", "test"}:
            raise SettingError(f"data.parts are {', '.join(self.given)}: give train and, where there are, val and test")

    @property
    def title(self) -> str:
        """Name of the class, with its settings."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.kind.__name__}({arguments})" if arguments else self.kind.__name__

    @cached_property
    def _found(self) -> Found:
        sets = {
            part: made(self.kind, self.root, self.download, self.arguments | arguments)
            for part, arguments in self.given.items()
        }
        labels = {part: as_labels(_labels(data), len(data), self.title) for part, data in sets.items()}
        names = getattr(sets["train"], "classes", None)
        names = names and [name if isinstance(name, str) else ", ".join(name) for name in names]
        places = [(part, place) for part, values in labels.items() for place in range(len(values))]
        images: Any = {part: getattr(data, "data", None) for part, data in sets.items()}
        is_array = all(isinstance(array, np.ndarray | Tensor) and array.ndim >= 3 for array in images.values())
        if not is_array or self.channels is not None:

            def opened(number: int) -> Image.Image:
                part, place = places[number]
                image: Image.Image = sets[part][place][0]
                return image

            item_names = [f"{part} {place}" for part, place in places]
            images = Items(opened, item_names, f"{self.title} {self.given} {len(places)}")
        return Found(images, [part for part, _ in places], np.concatenate(list(labels.values())), names)


def made(kind: Any, root: str, download: bool, settings: dict[str, Any]) -> Any:
    """A data set of torchvision, downloaded if its files are missing.

    Args:
        kind: class of the data set.
        root: folder of its files.
        download: whether files may be downloaded.
        settings: other arguments of the class.

    Raises:
        SettingError: the files are missing or damaged, or the class refuses the arguments.
    """
    try:
        try:
            return kind(root, **settings)
        except (RuntimeError, FileNotFoundError) as error:  # raised for missing files
            can_download = "download" in _parameters(kind)
            if not (download and can_download):
                why = "data.download is false" if can_download else reason(error)
                where = f"no {kind.__name__} in {Path(root).absolute()} ({why})"
                raise SettingError(f"{where}: name the folder of its files with --data.root") from error
        Path(root).mkdir(parents=True, exist_ok=True)
        # several processes may download at once, and torchvision prints a line for each mirror
        with FileLock(Path(root, f".{kind.__name__}.lock")), contextlib.redirect_stdout(io.StringIO()):
            return kind(root, download=True, **settings)
    except SettingError:
        raise
    except Exception as error:  # a download, a damaged file or a third-party class can fail in any way
        failed = f"{kind.__name__} cannot be made from {Path(root).absolute()} with {settings}: {reason(error)}"
        raise SettingError(f"{failed}; remove damaged files, or name another folder with --data.root") from error


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module or "torchvision.datasets"), name)
    except (ImportError, AttributeError) as error:
        nearest = ", ".join(get_close_matches(name, datasets.__all__, 5, 0.3))
        known = f"the nearest names of torchvision's are {nearest}"
        raise SettingError(f"there is no data set {path!r}; {known}") from error


def _parameters(kind: Any) -> set[str]:
    """Parameters of the constructor and of the base classes' constructors, to which some classes pass settings."""
    makers = [vars(base)["__init__"] for base in kind.__mro__[:-1] if "__init__" in vars(base)]
    return {name for maker in makers for name in inspect.signature(maker).parameters}


def _default_parts(kind: Any) -> dict[str, dict[str, Any]]:
    known = _parameters(kind)
    if "train" in known:
        return {"train": {"train": True}, "test": {"train": False}}
    return {"train": {"split": "train"}, "test": {"split": "test"}} if "split" in known else {"train": {}}


def _labels(dataset: Any) -> Any:
    for name in LABELS:
        if (labels := getattr(dataset, name, None)) is not None:
            return labels
    return [dataset[place][1] for place in range(len(dataset))]
