"""Labels of generated images: the classes of a data set, or the attributes of prompts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dng_lightning.data.base import ImageDataModule


@dataclass(frozen=True)
class LabelSpace:
    """The labels of an evaluation, with the forbidden and the retained ones.

    Attributes:
        names: name of each label.
        forbidden: the forbidden labels.
        retained: the labels over which the images should be uniformly distributed.
    """

    names: tuple[str, ...]
    forbidden: tuple[int, ...]
    retained: tuple[int, ...]

    @classmethod
    def of_classes(cls, names: Sequence[str], forbidden: Collection[int]) -> "LabelSpace":
        """The classes of a data set; all that are not forbidden are retained."""
        retained = tuple(label for label in range(len(names)) if label not in forbidden)
        return cls(tuple(names), tuple(forbidden), retained)

    def are_forbidden(self, labels: Tensor) -> Tensor:
        """Which images are forbidden, bool (N,), by their ``labels`` (N,)."""
        return torch.isin(labels, torch.tensor(self.forbidden, dtype=labels.dtype, device=labels.device))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns from ``measures``."""
        return ()

    def measures(self, read: Tensor) -> dict[str, float | None]:
        """Additional columns of ``results.csv`` from the attributes ``read`` in images, (N, ...)."""
        return {}

    def summary(self, read: Tensor, requested: Tensor) -> str:
        """One line about the attributes of N >= 1 images; empty without attributes.

        Args:
            read: attributes, (N, ...).
            requested: number of the requested prompt or class of each image, (N,).
        """
        return ""

    def check_real(self, data: "ImageDataModule") -> None:
        """Check that real images have these labels.

        Raises:
            SettingError: the labels differ.
        """
