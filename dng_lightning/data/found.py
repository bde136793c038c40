"""Base class of the data modules that search files or a library for images, labels and parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dng_lightning.data.base import ImageDataModule
from dng_lightning.data.tensors import numbered, three_sides


@dataclass(frozen=True)
class Found:
    """Contents of a data set, before decoding.

    Attributes:
        images: undecoded ``Items`` of all parts; or an array for each part, by name, as ``as_images`` accepts it.
        parts: part of each image: train, val or test.
        labels: label of each image, as ``as_labels`` returns them; None without classes.
        names: class names, in the order of the labels; None if the labels are the names.
        captions: caption of each image; None without captions.
    """

    images: Any
    parts: list[str]
    labels: "np.ndarray[Any, Any] | None" = None
    names: Sequence[str] | None = None
    captions: list[str] | None = None


@dataclass(eq=False, repr=False)
class FoundImages(ImageDataModule):
    """Searches for the images when the classes or the shape are first needed; subclasses implement ``_found``."""

    default_val_size = None

    @property
    def title(self) -> str:
        """Name of the class, with its root."""
        return f"{type(self).__name__} {self.root}"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """See ``ImageDataModule``."""
        return self._numbered[0]

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """See ``ImageDataModule``."""
        return self._shape(*three_sides(self._found.images["train"], self.title))

    @cached_property
    def _found(self) -> Found:
        """Contents of the data set."""
        raise NotImplementedError(f"{type(self).__name__} must define _found")

    @cached_property
    def _numbered(self) -> tuple[tuple[str, ...], Tensor]:
        """The class names, and the class index of each image, int64 (N,); all 0 without classes."""
        found = self._found
        if found.labels is None:
            return (), torch.zeros(len(found.parts), dtype=torch.int64)
        return numbered(found.labels, found.names, self.title)

    def _read(self) -> dict[str, Any]:
        parts = np.array(self._found.parts)
        return {name: (images, self._numbered[1][parts == name]) for name, images in self._found.images.items()}
