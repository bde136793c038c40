"""Drawn portraits with captions and exact attributes: CelebA on a laptop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image

from dng_lightning.data.loading import ImageTensors
from dng_lightning.data.store import Items, check_readable, stored
from dng_lightning.errors import SettingError, check_at_least, check_in
from scripts.captioned_images.data import CaptionedImages, Label
from scripts.portraits import drawing
from scripts.portraits.attributes import EVERY, PortraitAttributes
from scripts.portraits.captions import caption, mentioned, parse_caption

Portraits = list[PortraitAttributes] | PortraitAttributes | None


class CaptionedPortraits(CaptionedImages):
    """Portraits of 64x64 pixels, drawn once into a file in `root/portraits`, a few minutes for the default number.

    Every attribute is drawn at random, evenly and independently of the others unless `correlated` says otherwise. A
    portrait depends on `seed`, its part and its place alone. A caption mentions each attribute with probability 1/2.

    Args:
        root: folder for the file of drawn portraits.
        batch_size: images per batch and device, >= 1.
        label: what a batch holds besides its images, see ``CaptionedImages.choose``.
        include_classes: keep the portraits that have all attributes of one of these; None keeps all.
        exclude_classes: drop these portraits: `[{eyes: sunglasses}]`. Not together with `include_classes`.
        train_size: number of training images drawn, >= 1, before the filters.
        val_size: number of validation images, >= 1.
        test_size: number of test images, >= 1.
        correlated: attributes that go together, `[{if: {beard: bearded}, then: {head: short}, share: 0.9}]`: of the
            portraits with a beard, this share has short hair, the others have another value.
        seed: of all portraits.
        num_workers: loader processes; 0 is fastest.

    Raises:
        SettingError: there is no such attribute, or no portrait is left.
    """

    image_shape = (3, drawing.SIZE, drawing.SIZE)
    kind, every, tracked = PortraitAttributes, EVERY, ("skin", "head")

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        label: Label = "all",
        include_classes: Portraits = None,
        exclude_classes: Portraits = None,
        train_size: int = 20_000,
        val_size: int = 1_000,
        test_size: int = 2_000,
        correlated: list[dict[str, Any]] | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.choose(label, include_classes, exclude_classes)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        check_at_least(1, **{f"data.{part}_size": size for part, size in self.sizes.items()})
        self.correlated = [_rule(each) for each in correlated or []]
        self.seed = seed
        super().__init__(root, batch_size, flip=False, num_workers=num_workers)

    @staticmethod
    def parse(text: str) -> PortraitAttributes:
        """See ``parse_caption``."""
        return parse_caption(text)

    def sentence(self, attributes: Any, draw: Random) -> str:
        """See ``CaptionedImages.sentence``."""
        return caption(mentioned(attributes, draw), draw)

    def prepare_data(self) -> None:
        """Draw all portraits, so that each process finds them drawn.

        Raises:
            SettingError: the extra ``portraits`` is not installed.
        """
        self._drawn()

    def portrait(self, part: str, index: int) -> tuple[PortraitAttributes, Random]:
        """The attributes of the portrait at an index of `train`, `val` or `test`, and what chooses the rest."""
        choice = Random(f"{self.seed} {part} {index}")
        named = {name: choice.choice(values) for name, values in PortraitAttributes.values.items()}
        for condition, (name, value), share in self.correlated:
            if condition.items() <= named.items():
                others = [other for other in PortraitAttributes.values[name] if other != value]
                named[name] = value if choice.random() < share else choice.choice(others)
        return PortraitAttributes.of(named), choice

    def _drawn(self) -> Any:
        """All portraits, uint8 (N, 3, H, W), from the file if there is one."""
        places = self._places

        def portrait(place: int) -> Image.Image:
            return drawing.draw(*self.portrait(*places[place]))

        drawing.libraries()  # missing ones are missed now
        stamp = f"portraits 1 {self.sizes} {self.correlated} {self.seed}"
        names = [f"{part} portrait {index}" for part, index in places]
        items, folder = Items(portrait, names, stamp), Path(self.root) / "portraits"
        store, unreadable = stored(items, self.image_shape, "crop", folder, share=0.0)
        check_readable(items, unreadable, skip=False)
        return store

    def _read(self) -> dict[str, ImageTensors]:
        number = {picture: kind for kind, picture in enumerate(EVERY)}
        labels = torch.tensor([number[self.portrait(*place)[0]] for place in self._places])
        everything = ImageTensors(self._drawn(), labels)
        parts = [part for part, _ in self._places]
        return {name: everything.subset(torch.tensor([part == name for part in parts])) for name in self.sizes}

    @property
    def _places(self) -> Sequence[tuple[str, int]]:
        return [(part, index) for part, size in self.sizes.items() for index in range(size)]


def _rule(given: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, str], float]:
    """A correlation: under which condition, which attribute has which value, in which share."""
    try:
        condition = PortraitAttributes(**given["if"]).named()
        ((name, value),) = PortraitAttributes(**given["then"]).named().items()
        share = float(given["share"])
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(f"data.correlated is {given}: give if, then (one attribute) and share") from error
    check_in("[0, 1]", **{"data.correlated's share": share})
    return condition, (name, value), share
