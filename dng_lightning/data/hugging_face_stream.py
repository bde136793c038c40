"""Training on the whole of a Hugging Face data set that is read while it is needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dng_lightning.data.found import Found
from dng_lightning.data.hugging_face import SPLITS, HuggingFaceDataset
from dng_lightning.data.loading import ImageTensors
from dng_lightning.data.store import check_readable, stored
from dng_lightning.errors import SettingError, reason


@dataclass(eq=False, repr=False)
class HuggingFaceStream(HuggingFaceDataset):
    """A data set of any length, also unknown, that fits neither in memory nor on the disk (extra ``datasets``).

    Each epoch trains on the next images of the stream, as many as in the first epoch; after the last image come those
    of the second epoch again. They are shuffled within an epoch, so the data set must not be sorted by class. The parts
    val and test, and reference statistics, are of the first images. The length of a training is ``trainer.max_steps``
    or ``trainer.max_time``.

    In addition to the settings of ``HuggingFaceDataset``:

    Args:
        first: number of images of each split that are read before the training, and of each epoch in memory, >= 1.
    """

    first: int = 10_000

    def setup(self, stage: str | None = None) -> None:
        """See ``ImageDataModule``."""
        super().setup(stage)
        self._next_epoch, self._rows = 0, iter(())
        if self.trainer:
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]  # Lightning's own

    def _training_part(self) -> ImageTensors:
        """See ``ImageDataModule``."""
        epoch, first = self.trainer.current_epoch if self.trainer else 0, self._parts["train"]
        if not epoch:
            return first
        # As many rows as the first epoch had before the filters, without those held out
        size = round(self.first * len(first) / self.training_images)
        if epoch != self._next_epoch:  # the first one of this process
            self._rows = islice(self._later_rows(), (epoch - 1) * size, None)
        try:
            rows, self._next_epoch = list(islice(self._rows, size)), epoch + 1
        except Exception as error:  # a download can fail in any way
            raise SettingError(f"{self.title} cannot be read any further: {reason(error)}") from error
        if not rows:
            rank_zero_info(f"{self.title} has {self.first:,} images or fewer: the epochs do not differ")
            return first
        part = self._decoded_part(self._contents({"train": self._taken(rows, self._stream.features)}))
        if not len(part):
            raise SettingError(f"{self.title} has no image of the classes that are left in epoch {epoch}: shuffle it")
        return part.subset(torch.arange(len(part)) < len(first))

    @property
    def _stream(self) -> Any:
        """The training split."""
        return next(stream for name, stream in self._streams.items() if SPLITS.get(name, "train") == "train")

    def _later_rows(self) -> Iterator[Any]:
        """The rows after the first ones, again and again."""
        later = self._undecoded(self._stream).skip(self.first)
        while True:
            row = None
            for row in later:
                yield row
            if row is None:
                return

    def _decoded_part(self, found: Found) -> ImageTensors:
        """The images that the filters keep, in memory."""
        images, unreadable = stored(found.images, self._stored_shape, self.fit, self._cache, float("inf"))
        check_readable(found.images, unreadable, self.skip_unreadable)
        labels = self._labels(found)
        is_kept = torch.isin(labels, torch.tensor(self._kept_labels))
        is_kept[list(unreadable)] = False
        part = ImageTensors(images, labels, margin=self.crop, captions=found.captions)
        return self._finished(part.subset(is_kept))

    def _labels(self, found: Found) -> Tensor:
        """The class indices of later images, int64 (N,).

        Raises:
            SettingError: a label does not occur in the first images.
        """
        if found.labels is None:
            return torch.zeros(len(found.parts), dtype=torch.int64)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        if found.names is not None:
            numbers = {str(number): number for number in numbers.values()}
        if unknown := sorted({*map(str, found.labels)} - {*numbers}):
            raise SettingError(
                f"{self.title} has the label {unknown[0]} after its first images alone: raise data.first"
            )
        return torch.tensor([numbers[str(label)] for label in found.labels])
