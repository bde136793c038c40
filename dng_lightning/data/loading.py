"""Images in memory with one indexing call per batch, and a training loader that resumes within an epoch."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler

if TYPE_CHECKING:
    from dng_lightning.data.base import ImageDataModule


class ImageTensors(Dataset[Any]):
    """Selected images of a store, with labels; the loader indexes a whole batch at once.

    Args:
        store: uint8 (M, C, H, W), in memory or mapped from a file.
        labels: int64 (N,), or (N, A) of several attributes.
        places: indices of the N images in the store, int64 (N,); None for all images.
        margin: pixels by which stored images exceed the returned ones in height and width; indexing returns the middle.
        captions: N captions, which batches hold instead of labels; None without captions.
    """

    def __init__(
        self,
        store: Tensor,
        labels: Tensor,
        places: Tensor | None = None,
        margin: int = 0,
        captions: Sequence[str] | None = None,
    ) -> None:
        self.store, self.labels, self.captions = store, labels, captions
        self.places = torch.arange(len(labels)) if places is None else places
        self.margin, self.keep_margin = margin, False

    @property
    def images(self) -> Tensor:
        """All images, uint8 (N, C, H, W): a copy, for sets that fit in memory."""
        return self[:][0]

    def subset(self, chosen: Tensor) -> "ImageTensors":
        """The images that are ``chosen``, bool (N,), in the same store."""
        indices = chosen.nonzero().flatten()
        captions = None if self.captions is None else [self.captions[index] for index in indices.tolist()]
        return type(self)(self.store, self.labels[indices], self.places[indices], self.margin, captions)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at one index or several."""
        start = self.margin // 2
        height, width = (side - self.margin for side in self.store.shape[2:])
        return self.store[self.places[index]][..., start : start + height, start : start + width], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Any, ...]:
        """One batch, already collated: images, with their margin if ``keep_margin`` is set, and labels or captions."""
        chosen = torch.as_tensor(indices)
        images, labels = (self.store[self.places[chosen]], self.labels[chosen]) if self.keep_margin else self[chosen]
        return images, labels if self.captions is None else [self.captions[index] for index in indices]


def training_order(
    part: ImageTensors, batch_size: int, trainer: Trainer | None
) -> RandomSampler | DistributedSampler[Any]:
    """The random order of a device's training images; with a trainer it depends on the seed and the epoch."""
    if trainer is None:
        return RandomSampler(part)
    # the sampler that Lightning uses for several devices and whose epoch it sets; without repeated images, so that any
    # number of devices has the same batches
    drops = len(part) >= trainer.world_size * batch_size
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return DistributedSampler(part, trainer.world_size, trainer.global_rank, seed=seed, drop_last=drops)


class TrainingLoader(DataLoader[Any]):
    """Continues a resumed epoch after the last batch of the checkpoint; the sampler determines the order by epoch."""

    data: "ImageDataModule"

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator: the trainer creates the iterator before its progress is settled, and takes batches afterwards
        progress = self.data.trainer.fit_loop.epoch_loop.batch_progress if self.data.trainer else None
        yield from islice(super().__iter__(), progress.current.ready if progress else 0, None)

    def state_dict(self) -> dict[str, Any]:
        """Empty; the trainer resumes loaders that have this method."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the trainer's progress holds the position."""


def already_collated(batch: list[Any]) -> list[Any]:
    """The batch of ``__getitems__`` unchanged: a tuple, although ``DataLoader`` declares a list."""
    return batch
