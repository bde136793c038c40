"""Base class of images with captions: their data, batches and filters.

An image is the same in every run; what is said of it is another sentence in each epoch.
"""

from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dng_lightning.data.base import ImageDataModule
from dng_lightning.data.loading import ImageTensors
from dng_lightning.data.selection import kept
from dng_lightning.errors import SettingError
from scripts.captioned_images.attributes import Attributes, apart, joint, joint_names

Label = str | list[str]
Filter = Sequence[Attributes] | Attributes | None


class Captioned(NamedTuple):
    """A batch of everything.

    Attributes:
        images: float32 (B, 3, H, W) in [-1, 1] once they have reached the device.
        captions: B of them.
        attributes: labels int64 (B, A), in the order of ``Attributes.values``: all of each image, said or not.
    """

    images: Tensor
    captions: list[str]
    attributes: Tensor


class CaptionedTensors(ImageTensors):
    """Images in memory with all their attributes; a batch says besides where in the set its images are.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N, A).
    """

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Images, labels, and the indices themselves, int64 (B,)."""
        return *super().__getitems__(indices), torch.as_tensor(indices)


class CaptionedImages(ImageDataModule):
    """Images with exact attributes, and sentences that mention some of them.

    In training a caption depends on the seed, the epoch and the image alone, so resuming repeats it; in validation and
    testing on the image alone. A subclass labels its images by their index in ``kind.every()``, and calls ``choose``
    before the constructor of ``ImageDataModule``.

    Attributes:
        kind: the class of the images' attributes.
        every: all kinds of images.
        tracked: the attributes whose values have columns of their own in results.
        label: what a batch holds besides its images, see ``choose``.
        labelled: the attributes that label an image; none for `caption` and `all`.
    """

    kind: ClassVar[type[Attributes]]
    every: ClassVar[tuple[Attributes, ...]]
    tracked: ClassVar[tuple[str, ...]] = ()
    label: Label
    labelled: list[str]

    @staticmethod
    @abstractmethod
    def parse(text: str) -> Attributes:
        """What a sentence says of an image.

        Raises:
            SettingError: it is not understood.
        """

    @abstractmethod
    def sentence(self, attributes: Attributes, draw: Random) -> str:
        """One of the sentences that say something of an image with these attributes."""

    def choose(self, label: Label, include: Filter, exclude: Filter) -> None:
        """Set what batches hold.

        Args:
            label: what a batch holds besides its images: one attribute's labels (B,), to train a classifier; those of a
                list of attributes together, a class for each combination; `each`, the labels of all attributes (B, A);
                `caption`, a list of B sentences; or `all`, see ``Captioned``.
            include: keep the images that have all attributes of one of these; None keeps all.
            exclude: drop these images. Not together with ``include``.

        Raises:
            SettingError: there is no such attribute, or no image is left.
        """
        names, values = [label] if isinstance(label, str) else list(label), self.kind.values
        self.label, self.labelled = label, [] if names in (["all"], ["each"], ["caption"]) else names
        if not names or len(set(names)) < len(names) or not set(self.labelled) <= set(values):
            known = ", ".join(values)
            raise SettingError(f"data.label is {label!r}: give all, each, caption, {known}, or a list of these.")
        # of all kinds of images, as `_read` labels them
        self._kinds = kept(include, exclude, len(self.every), "picture", self._covered)
        each = tuple(f"{name} {value}" for name in values for value in values[name]) if label == "each" else ()
        self.class_names = joint_names(values, self.labelled) if self.labelled else each

    @property
    def pictures(self) -> list[Attributes]:
        """The kinds of images that the filters leave."""
        return [self.every[kind] for kind in self._kinds]

    @property
    def seen_classes(self) -> list[int]:
        """Labels of the chosen attributes that the filters leave, ascending; none if batches hold something else."""
        if not self.labelled:
            return list(range(len(self.class_names)))
        values = self.kind.values
        return sorted(set(joint(apart(torch.tensor(self._kinds), values), values, self.labelled).tolist()))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed as ``ImageDataModule`` does, and write the captions."""
        super().on_before_batch_transfer(batch, dataloader_idx)
        if self.class_names:
            return batch
        images, labels, indices = batch
        epoch = self.trainer.current_epoch if self.trainer is not None and self.trainer.training else None
        written = self.captions(labels, indices, epoch)
        return Captioned(images, written, labels) if self.label == "all" else (images, written)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert pixels to [-1, 1] on the device."""
        images, _ = super().on_after_batch_transfer((batch[0], batch[-1]), dataloader_idx)
        return batch._replace(images=images) if isinstance(batch, Captioned) else (images, batch[1])

    def captions(self, labels: Tensor, indices: Tensor, epoch: int | None = None) -> list[str]:
        """What is said of some images, after ``setup``.

        Args:
            labels: of all their attributes (B, A).
            indices: where in their part they are (B,).
            epoch: of training, from 0; None for the sentences that are the same in every run.
        """
        seed, kinds = "" if epoch is None else f"{self._seed} {epoch} ", joint(labels, self.kind.values)
        pairs = zip(kinds.tolist(), indices.tolist(), strict=True)
        return [self.sentence(self.every[kind], Random(f"{seed}{index}")) for kind, index in pairs]

    @property
    def _label_count(self) -> int:
        return len(self.every)

    @property
    def _kept_labels(self) -> list[int]:
        return self._kinds

    def _finished(self, part: ImageTensors) -> ImageTensors:
        attributes = apart(part.labels, self.kind.values)
        if self.labelled:
            return ImageTensors(part.store, joint(attributes, self.kind.values, self.labelled), part.places)
        kind = ImageTensors if self.label == "each" else CaptionedTensors
        return kind(part.store, attributes, part.places)

    def _covered(self, attributes: Attributes) -> list[int]:
        """The indices in ``every`` of the images that have these attributes."""
        return [kind for kind, picture in enumerate(self.every) if attributes.covers(picture)]
