"""What all image data modules share: whole sets in memory as uint8, whole batches indexed at once.

A batch is `(images, labels)`: float32 (B, C, H, W) in [-1, 1] once it has reached the device, int64 (B,). Labels are
the data set's own class indices, whatever was filtered out.
"""

import contextlib
import io
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
from dng_lightning.data.selection import SPLIT_SEED, Classes, default_share, held_out, kept
from dng_lightning.data.tensors import Range, as_images, as_labels, found_range, in_classes
from dng_lightning.errors import SettingError, check_at_least

Arrays = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)
Parts = tuple[Any, Any] | dict[str, Any]


@dataclass(eq=False, repr=False)
class ImageDataModule(LightningDataModule):
    """Common to all image data sets: class filters, the fixed splits, sizes, loaders, conversion to float.

    A data set names its ``class_names`` and ``image_shape`` as class attributes, or by properties where its files must
    be looked at first; without classes ``class_names`` is empty, and every label is 0.

    Args:
        root: folder with the data set's files in their official layout.
        batch_size: images per batch and device, >= 1; None for 64, or what ``dng fit`` chooses for the images.
        include_classes: classes to keep, by name or index; None keeps all.
        exclude_classes: classes to drop, by name or index. Not together with `include_classes`.
        val_size: number of training images held out, None for the data set's usual number. The split is stratified,
            the same in every run, and made before the filters: no filter moves an image from one part to another.
        flip: mirror training images left to right at random, None for the data set's habit.
        download: fetch missing files.
        num_workers: loader processes; 0 is fastest for sets in memory.
        test_size: number of images held out where the data set has no test part; None for a tenth, 5,000 at most.
        split_seed: of the images that are held out.
        image_size: side of the images, or height and width; None for their own.
        fit: how they come to that size: ``crop`` (resized, and cropped in the middle) or ``pad`` (whole, with black).
        crop: pixels by which images are kept larger than `image_size`, for training to crop them at random places.

    Raises:
        SettingError: a class is unknown, or no class or no image is left.
    """

    source: ClassVar[Any]  # the data set's class in torchvision
    files: ClassVar[str]  # below ``root``, for messages
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
        check_at_least(0, **{"data.crop": self.crop})
        self.flip = self.default_flip if self.flip is None else self.flip
        self.folder, self.size = Path(self.root), sides(self.image_size)
        self._range: Range | None = None  # of images that are no uint8; None to find it
        self._parts: dict[str, ImageTensors] = {}
        if isinstance(native := getattr(type(self), "image_shape", None), tuple):
            vars(self)["image_shape"] = self._shape(*native)
        if isinstance(getattr(type(self), "class_names", None), tuple):
            _ = self.seen_classes  # refuses unknown ones at once

    @property
    def batch(self) -> int:
        """The setting ``batch_size``, or its default."""
        return self.batch_size or 64

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their labels."""
        raise NotImplementedError

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network sees."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What tables and messages call the data set."""
        return type(self).__name__

    @property
    def seen_classes(self) -> list[int]:
        """Indices of the classes that the filters leave, ascending."""
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
        """About how many images there are to train on."""
        self.prepare_data()
        self.setup()
        return len(self.part("train"))

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
        parts["train"].keep_margin = True
        if self.default_val_size is None:  # a set of one's own, of which nobody knows what was found
            counts = ", ".join(f"{len(parts[name]):,} {name}" for name in ("train", "val", "test"))
            size, classes = "x".join(map(str, self.image_shape)), len(self.seen_classes)
            rank_zero_info(f"{self.title}: {counts} images of {size}; classes: {classes or 'none'}")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled; the incomplete last batch is dropped unless it is the only one.

        Under a trainer the order depends on the seed and the epoch alone, and resumes within an epoch. The batches of
        several devices are together those of one device with as large a batch.
        """
        part = self._parts["train"]
        order = training_order(part, self.batch, self.trainer)
        loader = TrainingLoader(part, sampler=order, drop_last=len(order) >= self.batch, **self._loading())
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

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert pixels to [-1, 1] on the device, crop and mirror training images: cheap there, a quarter to copy."""
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
        """How many labels `_read` can give."""
        return len(self.class_names)

    @property
    def _kept_labels(self) -> list[int]:
        """Those that the filters leave."""
        return self.seen_classes or [0]

    def _shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """That of the images that the network sees, of images that are so large."""
        height, width = self.size or (height - self.crop, width - self.crop)
        if min(height, width) < 1:
            raise SettingError(f"data.crop is {self.crop}: it must be smaller than the images")
        return channels, height, width

    def _checked(self, name: str, part: Any) -> ImageTensors:
        """A part of what `_read` gives, as uint8 images of the right shape and labels that there are."""
        if isinstance(part, ImageTensors):
            return part
        where = f"{self.title}'s {name} part"
        if self._range is None:  # the training part's is that of all
            self._range = found_range(part[0], where)
        images = as_images(part[0], where, self._range)
        labels = in_classes(as_labels(part[1], len(images), where), self._label_count, where)
        channels, height, width = self.image_shape
        shape = channels, height + self.crop, width + self.crop
        if self.size and images.shape[1] == channels:
            images = all_fitted(images, shape[1:], self.fit)
        if images.shape[1:] != shape and len(images):
            sizes = " instead of ".join("x".join(map(str, sides)) for sides in (images.shape[1:], shape))
            raise SettingError(f"{where} has images of {sizes}: set data.image_size for images of another size")
        return ImageTensors(images, labels, margin=self.crop)

    def _split(self, train: ImageTensors, setting: str) -> tuple[ImageTensors, ImageTensors]:
        """Training images without those that are held out, and these."""
        default = self.default_val_size if setting == "val_size" else None
        count = next(
            (count for count in (getattr(self, setting), default) if count is not None), default_share(len(train))
        )
        if not 0 <= count < len(train):
            raise SettingError(f"data.{setting} is {count}: give 0 to {len(train) - 1}.")
        held = held_out(train.labels, count, self.split_seed)
        return train.subset(~held), train.subset(held)

    def _finished(self, part: ImageTensors) -> ImageTensors:
        """A part's images, and what batches hold of its labels as `_read` gives them."""
        return part

    @property
    def _missing(self) -> str:
        where = f"no {self.source.__name__} in {self.folder.absolute()}"
        return f"{where}: put {self.files} there, or name its folder with --data.root."

    def _is_there(self) -> bool:
        """Whether the files are where `_read` will look; damaged ones count, so that reading can name them."""
        return True

    def _fetch(self) -> object:
        return self.source(self.root, download=True)

    def _read(self) -> Parts:
        """The official training and test part, or a dictionary of `train` and, where there are, `val` and `test`.

        A part is images and labels as ``as_images`` and ``as_labels`` take them, or an ``ImageTensors``.
        """
        raise NotImplementedError
