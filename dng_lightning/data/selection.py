"""Selection of images: class filters, and the held-out split."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError

SPLIT_SEED = 0

Classes = list[str | int] | str | int | None


def kept(only: Any, without: Any, count: int, what: str, labels_of: Callable[[Any], Collection[int]]) -> list[int]:
    """The labels that remain after the filters of a data set, ascending.

    Args:
        only: item or list of items to keep; None for all.
        without: item or list of items to drop.
        count: number of labels.
        what: noun for a label in the message.
        labels_of: maps an item of the filters to its labels.

    Raises:
        SettingError: both filters are given, or nothing is left.
    """
    if only is not None and without is not None:
        raise SettingError("data.include_classes and data.exclude_classes exclude each other: give one of them.")
    given = without if only is None else only
    items = given if isinstance(given, list) else [] if given is None else [given]
    named = {label for item in items for label in labels_of(item)}
    left = [label for label in range(count) if (label in named) == (only is not None)]
    if not left:
        raise SettingError(f"data.{'exclude_classes' if only is None else 'include_classes'} leaves no {what}.")
    return left


def held_out(labels: Tensor, count: int, seed: int = SPLIT_SEED) -> Tensor:
    """Choose `count` images, the same ones every time, in proportion to the classes.

    Args:
        labels: int64 (N,).
        count: 0..N.
        seed: seed of the choice.

    Returns:
        bool (N,), True for chosen images.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class after class, shuffled within
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[torch.arange(count) * len(labels) // max(count, 1)]] = True  # evenly spaced, hence in proportion
    return chosen
