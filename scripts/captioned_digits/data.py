"""Coloured digits and sentences about them: the data of a small text-to-image model, and of those who judge its images.

The picture of a handwritten digit is the same in every run, so that it need be encoded only once; what is said of it
is another sentence in each epoch.
"""

from random import Random
from typing import Any

import torch
from torch import Tensor

from dng_lightning.data.base import Arrays
from dng_lightning.data.images import MNIST
from scripts.captioned_digits import digit_rendering
from scripts.captioned_digits.attributes import EVERY, VALUES, Attributes
from scripts.captioned_digits.captions import caption, mentioned, parse_caption
from scripts.captioned_images.attributes import joint
from scripts.captioned_images.data import CaptionedImages, Label

PICTURE_SEED = 0

Pictures = list[Attributes] | Attributes | None


class CaptionedDigits(CaptionedImages, MNIST):
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
    kind, every = Attributes, EVERY

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        label: Label = "all",
        include_classes: Pictures = None,
        exclude_classes: Pictures = None,
        val_size: int | None = None,
        download: bool = True,
        num_workers: int = 0,
    ) -> None:
        self.choose(label, include_classes, exclude_classes)
        super().__init__(root, batch_size, val_size=val_size, flip=False, download=download, num_workers=num_workers)

    @staticmethod
    def parse(text: str) -> Attributes:
        """See ``parse_caption``."""
        return parse_caption(text)

    def sentence(self, attributes: Any, draw: Random) -> str:
        """See ``CaptionedImages.sentence``."""
        return caption(mentioned(attributes, draw), draw)

    def _read(self) -> tuple[Arrays, Arrays]:
        parts = super()._read()
        assert isinstance(parts, tuple)  # MNIST's
        (train, train_digits), (test, test_digits) = parts
        return _pictures(train[:, None], train_digits, "train"), _pictures(test[:, None], test_digits, "test")


def _pictures(pixels: Tensor, digits: Tensor, part: str) -> Arrays:
    """The pictures of one part, and which of ``EVERY`` kind each one is."""
    generator = torch.Generator().manual_seed(Random(f"{PICTURE_SEED} {part}").getrandbits(63))
    drawn = [torch.randint(len(VALUES[name]), digits.shape, generator=generator) for name in list(VALUES)[1:]]
    return digit_rendering.draw(pixels, *drawn), joint(torch.stack([digits, *drawn], dim=1), VALUES)
