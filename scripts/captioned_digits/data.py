"""Coloured digits and sentences about them: the data of a small text-to-image model, and of those who judge its images.

The picture of a handwritten digit is the same in every run, so that it need be encoded only once; what is said of it
is another sentence in each epoch.
"""

from collections.abc import Sequence
from itertools import product
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dng_lightning.data.base import Arrays
from dng_lightning.data.images import MNIST
from dng_lightning.data.loading import ImageTensors
from dng_lightning.data.selection import kept
from dng_lightning.errors import SettingError
from scripts.captioned_digits import digit_rendering
from scripts.captioned_digits.attributes import EVERY, VALUES, Attributes
from scripts.captioned_digits.captions import caption, mentioned

PICTURE_SEED = 0
LABELS = torch.tensor([list(kind.labels().values()) for kind in EVERY])  # of all attributes, (kinds, 4)

Pictures = list[Attributes] | Attributes | None


class Captioned(NamedTuple):
    """A batch of everything.

    Attributes:
        images: float32 (B, 3, 32, 32) in [-1, 1] once they have reached the device.
        captions: B of them.
        attributes: labels int64 (B, 4), in the order of ``attributes.VALUES``: all of each picture, said or not.
    """

    images: Tensor
    captions: list[str]
    attributes: Tensor


class CaptionedTensors(ImageTensors):
    """Images in memory with all their attributes; a batch says besides where in the set its images are.

    Args:
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N, 4).
    """

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Images, labels, and the indices themselves, int64 (B,)."""
        return *super().__getitems__(indices), torch.as_tensor(indices)


class CaptionedDigits(MNIST):
    """MNIST's digits, 60,000 + 10,000 of 32x32 in colour, redrawn by `digit_rendering.draw`; files in `root/MNIST/raw`.

    Colour, thickness and background of each are drawn at random, independently and evenly. Captions mention some of
    the attributes; in training they depend on the seed, the epoch and the image alone, so resuming repeats them, in
    validation and testing on the image alone.

    Args:
        root: folder with the data set's files in their official layout.
        batch_size: images per batch and device, >= 1.
        label: what a batch holds besides its images: one attribute's labels (B,), to train a classifier; those of a
            list of attributes together, a class for each combination; `caption`, a list of B sentences; or `all`, see
            ``Captioned``.
        include_classes: keep the pictures that have all attributes of one of these; None keeps all.
        exclude_classes: drop these pictures: `[{digit: 7, colour: red}]` drops red sevens. Not together with
            `include_classes`.
        val_size: number of training images held out, None for 5,000; each kind of picture has its share.
        download: fetch missing files.
        num_workers: loader processes; 0 is fastest.

    Raises:
        SettingError: there is no such attribute, or no picture is left.
    """

    image_shape = (3, digit_rendering.SIZE, digit_rendering.SIZE)

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        label: str | list[str] = "all",
        include_classes: Pictures = None,
        exclude_classes: Pictures = None,
        val_size: int | None = None,
        download: bool = True,
        num_workers: int = 0,
    ) -> None:
        names = [label] if isinstance(label, str) else list(label)
        self.labelled = [] if names in (["all"], ["caption"]) else names
        if not names or len(set(names)) < len(names) or not set(self.labelled) <= set(VALUES):
            raise SettingError(f"data.label is {label!r}: give all, caption, {', '.join(VALUES)}, or a list of these.")
        # of all kinds of pictures, as `_read` labels them
        self._kinds = kept(include_classes, exclude_classes, len(EVERY), "picture", _covered)
        super().__init__(root, batch_size, val_size=val_size, flip=False, download=download, num_workers=num_workers)
        self.label = label
        self.class_names = joint_names(self.labelled) if self.labelled else ()

    @property
    def pictures(self) -> list[Attributes]:
        """The kinds of pictures that the filters leave."""
        return [EVERY[kind] for kind in self._kinds]

    @property
    def seen_classes(self) -> list[int]:
        """Labels of the chosen attributes that the filters leave, ascending; none if batches hold something else."""
        if not self.labelled:
            return []
        return sorted(set(joint(LABELS[self._kinds], self.labelled).tolist()))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed as ``ImageDataModule`` does, and write the captions."""
        super().on_before_batch_transfer(batch, dataloader_idx)
        if self.labelled:
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
            labels: of all their attributes (B, 4).
            indices: where in their part they are (B,).
            epoch: of training, from 0; None for the sentences that are the same in every run.
        """
        seed = "" if epoch is None else f"{self._seed} {epoch} "
        written = []
        for kind, index in zip(joint(labels).tolist(), indices.tolist(), strict=True):
            draw = Random(f"{seed}{index}")
            written.append(caption(mentioned(EVERY[kind], draw), draw))
        return written

    @property
    def _label_count(self) -> int:
        return len(EVERY)

    @property
    def _kept_labels(self) -> list[int]:
        return self._kinds

    def _finished(self, part: ImageTensors) -> ImageTensors:
        attributes = LABELS[part.labels]
        if self.labelled:
            return ImageTensors(part.store, joint(attributes, self.labelled), part.places)
        return CaptionedTensors(part.store, attributes, part.places)

    def _read(self) -> tuple[Arrays, Arrays]:
        train, test = super()._read()
        return _pictures(*train, "train"), _pictures(*test, "test")


def joint(labels: Tensor, names: Sequence[str] = tuple(VALUES)) -> Tensor:
    """One label for the combination of some attributes; of all four it is the index in ``EVERY``.

    Args:
        labels: of all attributes, (N, 4).
        names: which attributes, in the order of ``joint_names``.

    Returns:
        (N,), in the range of ``joint_names(names)``.
    """
    combined = torch.zeros_like(labels[:, 0])
    for name in names:
        combined = combined * len(VALUES[name]) + labels[:, list(VALUES).index(name)]
    return combined


def joint_names(names: Sequence[str]) -> tuple[str, ...]:
    """What the labels of ``joint`` are called: "7", or "7 red" of digit and colour."""
    return tuple(" ".join(values) for values in product(*(VALUES[name] for name in names)))


def _pictures(pixels: Tensor, digits: Tensor, part: str) -> Arrays:
    """The pictures of one part, and which of ``EVERY`` kind each one is."""
    generator = torch.Generator().manual_seed(Random(f"{PICTURE_SEED} {part}").getrandbits(63))
    drawn = [torch.randint(len(VALUES[name]), digits.shape, generator=generator) for name in list(VALUES)[1:]]
    return digit_rendering.draw(pixels, *drawn), joint(torch.stack([digits, *drawn], dim=1))


def _covered(attributes: Attributes) -> list[int]:
    """The indices in ``EVERY`` of the pictures that have these attributes."""
    return [kind for kind, picture in enumerate(EVERY) if attributes.covers(picture)]
