"""What generated images are sorted into to be compared: the classes of a data set, or what prompts are about."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dng_lightning.data.base import ImageDataModule


@dataclass(frozen=True)
class LabelSpace:
    """The kinds of images that there are; an image's label is the number of its kind.

    Attributes:
        names: of all kinds.
        forbidden: the labels of those to avoid.
        retained: the labels of those that the images shall be spread over evenly.
    """

    names: tuple[str, ...]
    forbidden: tuple[int, ...]
    retained: tuple[int, ...]

    @classmethod
    def of_classes(cls, names: Sequence[str], forbidden: Collection[int]) -> "LabelSpace":
        """The classes of a data set, of which all that are not forbidden are retained."""
        retained = tuple(label for label in range(len(names)) if label not in forbidden)
        return cls(tuple(names), tuple(forbidden), retained)

    def are_forbidden(self, labels: Tensor) -> Tensor:
        """Which images are to be avoided, bool (N,), by their ``labels`` (N,)."""
        return torch.isin(labels, torch.tensor(self.forbidden, dtype=labels.dtype, device=labels.device))

    @property
    def columns(self) -> tuple[str, ...]:
        """What ``measures`` gives."""
        return ()

    def measures(self, read: Tensor) -> dict[str, float | None]:
        """More columns of ``results.csv``, of all that was read in some images, (N, ...)."""
        return {}

    def summary(self, read: Tensor, requested: Tensor) -> str:
        """One line of what was read in some images, N >= 1, besides their labels; empty for nothing.

        Args:
            read: (N, ...).
            requested: the number of the prompt or class that each image was drawn for, (N,).
        """
        return ""

    def check_real(self, data: "ImageDataModule") -> None:
        """Refuse real images of other kinds than these.

        Raises:
            SettingError: they are.
        """
