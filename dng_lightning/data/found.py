"""What the data modules share that look through files or a library for images, labels and parts."""

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
    """What a data set has, before an image is decoded.

    Attributes:
        images: ``Items`` of all parts, to be decoded; or an array for each part, by name, as ``as_images`` takes it.
        parts: the part that each image is in: train, val or test.
        labels: of each image, as ``as_labels`` gives them; None where there are no classes.
        names: of the classes, in the order of their labels; None where a label is its own name.
        captions: of each image; None for none.
    """

    images: Any
    parts: list[str]
    labels: "np.ndarray[Any, Any] | None" = None
    names: Sequence[str] | None = None
    captions: list[str] | None = None


@dataclass(eq=False, repr=False)
class FoundImages(ImageDataModule):
    """Looks for the images when its classes or their shape are first needed; a subclass says where, in ``_found``."""

    default_val_size = None

    @property
    def title(self) -> str:
        """With the place, as two places are two data sets."""
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
        """What there is."""
        raise NotImplementedError

    @cached_property
    def _numbered(self) -> tuple[tuple[str, ...], Tensor]:
        """The class names, and the number of each image's class, int64 (N,); all 0 where there are no classes."""
        found = self._found
        if found.labels is None:
            return (), torch.zeros(len(found.parts), dtype=torch.int64)
        return numbered(found.labels, found.names, self.title)

    def _read(self) -> dict[str, Any]:
        parts = np.array(self._found.parts)
        return {name: (images, self._numbered[1][parts == name]) for name, images in self._found.images.items()}
