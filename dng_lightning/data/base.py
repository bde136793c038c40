"""What all image data modules share: whole sets in memory as uint8, whole batches indexed at once.

A batch is `(images, labels)`: float32 (B, C, H, W) in [-1, 1] once it has reached the device, int64 (B,). Labels are
the data set's own class indices, whatever was filtered out.
"""

import contextlib
import io
import os
import random
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, TensorDataset

from dng_lightning.class_labels import label_of
from dng_lightning.data.pixels import to_float
from dng_lightning.errors import SettingError, check_at_least

Arrays = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)

SPLIT_SEED = 0

Classes = list[str | int] | str | int | None


class ImageTensors(TensorDataset):
    """Images and labels in memory; the loader asks for a whole batch of indices at once.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, labels)
        self.images, self.labels = images, labels

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """One batch, already collated: an indexing call per batch instead of one per image."""
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]


class TrainingLoader(DataLoader[Any]):
    """Continues a resumed epoch where its checkpoint was saved; the order is the sampler's, which knows the epoch."""

    data: "ImageDataModule"

    def __iter__(self) -> Iterator[Arrays]:  # type: ignore[override]
        # a generator: the trainer asks for it before it has settled where it is, and for the first batch thereafter
        progress = self.data.trainer.fit_loop.epoch_loop.batch_progress if self.data.trainer else None
        yield from islice(super().__iter__(), progress.current.ready if progress else 0, None)

    def state_dict(self) -> dict[str, Any]:
        """Nothing, but tells the trainer that this loader can resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the trainer's own progress says it all."""


class ImageDataModule(LightningDataModule):
    """Common to all image data sets: class filters, the fixed validation split, loaders, conversion to float.

    Args:
        root: folder with the data set's files in their official layout.
        batch_size: images per batch and device, >= 1.
        include_classes: classes to keep, by name or index; None keeps all.
        exclude_classes: classes to drop, by name or index. Not together with `include_classes`.
        val_size: number of training images held out, None for the data set's usual number. The split is stratified,
            the same in every run, and made before the filters: no filter moves an image from one part to another.
        flip: mirror training images left to right at random, None for the data set's habit.
        download: fetch missing files.
        num_workers: loader processes; 0 is fastest for sets in memory.

    Raises:
        SettingError: a class is unknown, or no class or no image is left.
    """

    class_names: tuple[str, ...]
    image_shape: ClassVar[tuple[int, int, int]]  # (C, H, W)
    source: ClassVar[Any]  # the data set's class in torchvision
    files: ClassVar[str]  # below ``root``, for messages
    default_val_size: ClassVar[int] = 5000
    default_flip: ClassVar[bool] = False

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        include_classes: Classes = None,
        exclude_classes: Classes = None,
        val_size: int | None = None,
        flip: bool | None = None,
        download: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, **{"data.batch_size": batch_size})
        self.root, self.download = Path(root), download
        self.batch_size, self.num_workers = batch_size, num_workers
        self.val_size = self.default_val_size if val_size is None else val_size
        self.flip = self.default_flip if flip is None else flip
        self._seen_classes = kept(include_classes, exclude_classes, len(self.class_names), "class", self._label_of)
        self._parts: dict[str, ImageTensors] = {}

    @property
    def seen_classes(self) -> list[int]:
        """Indices of the classes that the filters leave, ascending."""
        return list(self._seen_classes)

    def prepare_data(self) -> None:
        """Fetch the files if they are not there.

        Raises:
            SettingError: they are missing and may not or cannot be downloaded.
        """
        if self._is_there():
            return
        if not self.download:
            raise SettingError(f"{self._missing} (data.download is false)")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints a line per mirror it tried
                self._fetch()
        except Exception as error:  # a download can fail in many ways; torchvision's last line says how
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise SettingError(f"{self._missing} Downloading failed: {reason}") from error

    def setup(self, stage: str | None = None) -> None:
        """Read, split and filter; the parts do not depend on `stage`.

        Raises:
            SettingError: files are missing or damaged, or `val_size` does not fit.
        """
        self._seed = torch.initial_seed()
        if self._parts:
            return
        if not self._is_there():
            raise SettingError(self._missing)
        (images, labels), test = self._read()
        if not 0 <= self.val_size < len(labels):
            raise SettingError(f"data.val_size is {self.val_size}: give 0 to {len(labels) - 1}.")
        held = held_out(labels, self.val_size)
        parts = {"train": (images[~held], labels[~held]), "val": (images[held], labels[held]), "test": test}
        seen = torch.tensor(self._seen_classes)
        for name, (images, labels) in parts.items():
            is_kept = torch.isin(labels, seen)
            self._parts[name] = self._tensors(images[is_kept], labels[is_kept])
        if not len(self._parts["train"]):
            self._parts = {}
            raise SettingError(
                f"{type(self).__name__} in {self.root} has no training image of the classes that are left."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled; the incomplete last batch is dropped unless it is the only one.

        Under a trainer the order depends on the seed and the epoch alone, and resumes within an epoch.
        """
        part = self._parts["train"]
        order: Sampler[int] = RandomSampler(part)
        if self.trainer is not None:  # what Lightning would take for several devices; it tells the sampler the epoch
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            order = DistributedSampler(part, self.trainer.world_size, self.trainer.global_rank, seed=seed)
        drop_last = len(order) >= self.batch_size  # type: ignore[arg-type]  # both of them have a length
        loader = TrainingLoader(part, sampler=order, drop_last=drop_last, **self._loading())
        loader.data = self
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out training images, in order."""
        return DataLoader(self._parts["val"], **self._loading())

    def test_dataloader(self) -> DataLoader[Any]:
        """The official test images, in order."""
        return DataLoader(self._parts["test"], **self._loading())

    def on_before_batch_transfer(self, batch: Arrays, dataloader_idx: int) -> Arrays:
        """Seed what a training step draws by its number and device: resuming repeats it, no two devices share it."""
        if self.trainer is not None and self.trainer.training:
            step = self.trainer.fit_loop.epoch_loop.batch_progress.total.completed
            torch.manual_seed(random.Random(f"{self._seed} {step} {self.trainer.global_rank}").getrandbits(63))
        return batch

    def on_after_batch_transfer(self, batch: Arrays, dataloader_idx: int) -> Arrays:
        """Convert pixels to [-1, 1] on the device, and mirror training images: cheap there, and a quarter to copy."""
        images, labels = batch
        if images.dtype == torch.uint8:
            images = to_float(images)
        if self.flip and self.trainer is not None and self.trainer.training:
            mirrored = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images, labels

    def part(self, name: str) -> ImageTensors:
        """The uint8 images and labels of `train`, `val` or `test`, after `setup`."""
        return self._parts[name]

    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "collate_fn": _already_collated,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    def _label_of(self, name: str | int) -> Collection[int]:
        return [label_of(name, self.class_names, type(self).__name__)]

    @property
    def _missing(self) -> str:
        where = f"no {self.source.__name__} in {self.root.absolute()}"
        return f"{where}: put {self.files} there, or name its folder with --data.root."

    def _is_there(self) -> bool:
        """Whether the files are where `_read` will look; damaged ones count, so that reading can name them."""
        return True

    def _fetch(self) -> object:
        return self.source(str(self.root), download=True)

    def _tensors(self, images: Tensor, labels: Tensor) -> ImageTensors:
        """A part's images, and what batches hold of its labels as `_read` gives them."""
        return ImageTensors(images, labels)

    def _read(self) -> tuple[Arrays, Arrays]:
        """The official training and test part."""
        raise NotImplementedError


def kept(only: Any, without: Any, count: int, what: str, labels_of: Callable[[Any], Collection[int]]) -> list[int]:
    """The labels that the filters of a data set leave, ascending.

    Args:
        only: one or several of what is kept; None for everything.
        without: one or several of what is dropped.
        count: number of labels.
        what: the labels stand for, for the message.
        labels_of: gives the labels that one item of the filters stands for.

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


def _already_collated(batch: list[Arrays]) -> list[Arrays]:
    return batch  # no list at all: what `__getitems__` returned, whatever the loader's type for this function says


def held_out(labels: Tensor, count: int) -> Tensor:
    """Choose `count` images, the same ones every time, with every class in its share.

    Args:
        labels: int64 (N,).
        count: 0..N.

    Returns:
        bool (N,), True for the chosen.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    order = order[labels[order].argsort(stable=True)]  # class after class, shuffled within
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[torch.arange(count) * len(labels) // max(count, 1)]] = True  # evenly spaced, hence in proportion
    return chosen
