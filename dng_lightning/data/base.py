"""Base class of the image data modules: uint8 images in memory, indexed a whole batch at a time.

A batch is `(images, labels)`: float32 (B, C, H, W) in [-1, 1] after the transfer to the device, and int64 (B,). Labels
are the data set's own class indices, also after filtering.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from dng_lightning.class_labels import label_of
from dng_lightning.data.loading import ImageTensors, TrainingLoader, already_collated, training_order
from dng_lightning.data.pixels import to_float
from dng_lightning.data.resize import Fit, Size, all_fitted, random_windows, sides
from dng_lightning.data.selection import SPLIT_SEED, Classes, held_out, kept
from dng_lightning.data.tensors import Range, as_images, as_labels, found_range, in_classes
from dng_lightning.errors import SettingError, check_at_least

Arrays = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)
Parts = tuple[Any, Any] | dict[str, Any]


@dataclass(eq=False, repr=False)
class ImageDataModule(LightningDataModule):
    """Base class of all image data sets: class filters, fixed splits, sizes, loaders, conversion to float.

    A subclass defines ``class_names`` and ``image_shape`` as class attributes, or as properties if they depend on its
    files; without classes ``class_names`` is empty, and every label is 0.

    Args:
        root: folder with the data set's files in their official layout.
        batch_size: images per batch and device, >= 1; None for 64, or the number that ``dng fit`` chooses.
        include_classes: classes to keep, by name or index; None keeps all.
        exclude_classes: classes to drop, by name or index. Not together with `include_classes`.
        val_size: number of training images held out, None for the data set's default. The split is stratified, the same
            in every run, and made before the filters, so that no filter moves an image from one part to another.
        flip: mirror training images left to right at random; None for the data set's default.
        download: download missing files.
        num_workers: loader processes; 0 is fastest for sets in memory.
        test_size: number of images held out if the data set has no test part; None for a tenth, 5,000 at most.
        split_seed: seed of the choice of held-out images.
        image_size: side of the images, or height and width; None to keep their size.
        fit: to that size by ``crop`` (resize and centre-crop) or by ``pad`` (resize and add black borders).
        crop: pixels by which stored images exceed `image_shape`; training crops them at random positions.

    Raises:
        SettingError: a class is unknown, or no class or no image is left.
    """

    default_val_size: ClassVar[int | None] = 5000  # None for a tenth, 5,000 at most
    default_flip: ClassVar[bool] = False

    root: str = "data"
    batch_size: int | None = 128
    include_classes: Classes = None
    exclude_classes: Classes = None
    val_size: int | None = None
    flip: bool | None = None
    download: bool = True
    num_workers: int = 0
    test_size: int | None = None
    split_seed: int = SPLIT_SEED
    image_size: int | Size | None = None
    fit: Fit = "crop"
    crop: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        check_at_least(1, **{"data.batch_size": self.batch_size})
        check_at_least(0, **{"data.crop": self.crop, "data.num_workers": self.num_workers})
        self.flip = self.default_flip if self.flip is None else self.flip
        self.folder, self.size = Path(self.root), sides(self.image_size)
        self._range: Range | None = None  # of images that are not uint8; None to infer it
        self._parts: dict[str, ImageTensors] = {}
        if isinstance(native := getattr(type(self), "image_shape", None), tuple):
            vars(self)["image_shape"] = self._shape(*native)
        if isinstance(getattr(type(self), "class_names", None), tuple):
            _ = self.seen_classes  # refuses unknown classes at once

    @property
    def batch(self) -> int:
        """The setting ``batch_size``, or its default."""
        return self.batch_size or 64

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their labels."""
        raise NotImplementedError(f"{type(self).__name__} must define class_names, () without classes")

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images in a batch."""
        raise NotImplementedError(f"{type(self).__name__} must define image_shape, (C, H, W)")

    @property
    def title(self) -> str:
        """Name of the data set in tables and messages."""
        return type(self).__name__

    @property
    def seen_classes(self) -> list[int]:
        """Indices of the classes that remain after filtering, ascending."""
        if not self.class_names:
            if self.include_classes is not None or self.exclude_classes is not None:
                raise SettingError(
                    f"{self.title} has no classes: leave data.include_classes and data.exclude_classes null"
                )
            return []
        names, owner = self.class_names, type(self).__name__
        filters = self.include_classes, self.exclude_classes
        return kept(*filters, len(names), "class", lambda name: [label_of(name, names, owner)])

    @property
    def training_images(self) -> int:
        """Approximate number of training images."""
        self.setup()
        return len(self.part("train"))

    def prepare_data(self) -> None:
        """Read the images, before a training writes anything; see ``setup``."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read, split and filter the images; the parts do not depend on `stage`.

        Raises:
            SettingError: files are missing or damaged, or `val_size` does not fit.
        """
        self._seed = torch.initial_seed()
        if self._parts:
            return
        found = self._read()
        parts = dict(zip(("train", "test"), found, strict=True)) if isinstance(found, tuple) else found
        parts = {name: self._checked(name, part) for name, part in parts.items()}
        for name, setting in (("test", "test_size"), ("val", "val_size")):
            if not len(parts.get(name, ())):
                parts["train"], parts[name] = self._split(parts["train"], setting)
            elif getattr(self, setting) is not None:
                raise SettingError(f"data.{setting} is set, but {self.title} has a part for it: leave it null")
        seen = torch.tensor(self._kept_labels)
        parts = {name: self._finished(part.subset(torch.isin(part.labels, seen))) for name, part in parts.items()}
        if not len(parts["train"]):
            raise SettingError(
                f"{type(self).__name__} in {self.root} has no training image of the classes that are left."
            )
        self._parts = parts
        if self.default_val_size is None:  # the user's own data: report what was found
            counts = ", ".join(f"{len(parts[name]):,} {name}" for name in ("train", "val", "test"))
            size, classes = "x".join(map(str, self.image_shape)), len(self.seen_classes)
            rank_zero_info(f"{self.title}: {counts} images of {size}; classes: {classes or 'none'}")

    def train_dataloader(self) -> DataLoader[Any]:
        """The training images, shuffled; the incomplete last batch is dropped unless it is the only one.

        With a trainer the order depends only on the seed and the epoch, and a resumed training continues within the
        epoch. Together the batches of several devices equal those of one device with the same total batch size.
        """
        part = self._training_part()
        part.keep_margin = True
        order = training_order(part, self.batch, self.trainer)
        loader = TrainingLoader(part, sampler=order, drop_last=len(order) >= self.batch, **self._loading())
        loader.data = self
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images, in order."""
        return DataLoader(self._parts["val"], **self._loading())

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images, in order."""
        return DataLoader(self._parts["test"], **self._loading())

    def on_before_batch_transfer(self, batch: Arrays, dataloader_idx: int) -> Arrays:
        """Seed a training step's random numbers by step and device: resuming repeats them, and devices differ."""
        if self.trainer is not None and self.trainer.training:
            step = self.trainer.fit_loop.epoch_loop.batch_progress.total.completed
            torch.manual_seed(random.Random(f"{self._seed} {step} {self.trainer.global_rank}").getrandbits(63))
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert pixels to [-1, 1], and crop and mirror training images, on the device; the transfer is of uint8."""
        images, labels = batch
        if self.crop and images.shape[-2:] != tuple(self.image_shape[1:]):
            images = random_windows(images, self.image_shape[1:])
        if images.dtype == torch.uint8:
            images = to_float(images)
        if self.flip and self.trainer is not None and self.trainer.training:
            mirrored = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images, labels

    def part(self, name: str) -> ImageTensors:
        """The uint8 images and labels of `train`, `val` or `test`, after `setup`."""
        return self._parts[name]

    def _training_part(self) -> ImageTensors:
        """The training images of the current epoch."""
        return self._parts["train"]

    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch,
            "collate_fn": already_collated,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    @property
    def _label_count(self) -> int:
        """Number of labels that `_read` may return."""
        return len(self.class_names)

    @property
    def _kept_labels(self) -> list[int]:
        """The labels that remain after filtering."""
        return self.seen_classes or [0]

    @property
    def _stored_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images before random crops."""
        channels, height, width = self.image_shape
        return channels, height + self.crop, width + self.crop

    def _shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """``image_shape`` for images of this native shape."""
        height, width = self.size or (height - self.crop, width - self.crop)
        if min(height, width) < 1:
            raise SettingError(f"data.crop is {self.crop}: it must be smaller than the images")
        return channels, height, width

    def _checked(self, name: str, part: Any) -> ImageTensors:
        """One part from `_read`, as uint8 images of the right shape and valid labels."""
        if isinstance(part, ImageTensors):
            return part
        where = f"{self.title}'s {name} part"
        if self._range is None:  # the range of the training part applies to all parts
            self._range = found_range(part[0], where)
        images = as_images(part[0], where, self._range)
        labels = in_classes(as_labels(part[1], len(images), where), self._label_count, where)
        shape = self._stored_shape
        if self.size and images.shape[1] == shape[0]:
            images = all_fitted(images, shape[1:], self.fit)
        if images.shape[1:] != shape and len(images):
            sizes = " instead of ".join("x".join(map(str, sides)) for sides in (images.shape[1:], shape))
            raise SettingError(f"{where} has images of {sizes}: set data.image_size for images of another size")
        return ImageTensors(images, labels, margin=self.crop)

    def _split(self, train: ImageTensors, setting: str) -> tuple[ImageTensors, ImageTensors]:
        """The remaining training images, and the held-out ones."""
        count = getattr(self, setting)
        if count is None and setting == "val_size":
            count = self.default_val_size
        if count is None:
            count = min(5000, len(train) // 10)
        if not 0 <= count < len(train):
            raise SettingError(f"data.{setting} is {count}: give 0 to {len(train) - 1}.")
        held = held_out(train.labels, count, self.split_seed)
        return train.subset(~held), train.subset(held)

    def _finished(self, part: ImageTensors) -> ImageTensors:
        """The part, with the labels of `_read` converted to those in batches."""
        return part

    def _read(self) -> Parts:
        """The official training and test part, or a dictionary of `train` and, if present, `val` and `test`.

        A part is images and labels as ``as_images`` and ``as_labels`` accept them, or an ``ImageTensors``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define _read, which returns the parts")
