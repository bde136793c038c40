"""Base class of the data modules whose images are decoded one by one: image folders and libraries of images."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dng_lightning.data.found import FoundImages
from dng_lightning.data.loading import ImageTensors
from dng_lightning.data.store import MEMORY_SHARE, Items, Unreadable, check_readable, look, stored
from dng_lightning.errors import SettingError, check_in


@dataclass(eq=False, repr=False)
class DecodedImages(FoundImages):
    """Decodes all images before the first batch, unless the data set holds them as arrays.

    Args:
        channels: 1 for grey, 3 for colour; None for grey if all images are grey.
        skip_unreadable: skip images that cannot be read, instead of listing them in an error.
        cache: folder for decoded images that take more than ``memory_share``, and for the sizes of many images; None
            for the default.
        memory_share: share of the machine's memory that the decoded images of all processes may take, in [0, 1]; above
            it they are kept in a file, which is written once for these images and settings.
    """

    channels: int | None = None
    skip_unreadable: bool = False
    cache: str | None = None
    memory_share: float = MEMORY_SHARE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_in("[0, 1]", **{"data.memory_share": self.memory_share})
        if self.channels not in (None, 1, 3):
            raise SettingError(f"data.channels is {self.channels}: give 1 for grey, 3 for colour, or null")

    @property
    def default_cache(self) -> Path:
        """A hidden subfolder of the images' folder, which the search for images skips."""
        return self.folder / ".dng_lightning"

    @property
    def _cache(self) -> Path:
        return Path(self.cache) if self.cache else self.default_cache

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """See ``ImageDataModule``; reads the headers of all images, unless the settings determine the shape."""
        if not isinstance(items := self._found.images, Items):
            return super().image_shape
        if self.size and self.channels:
            return self._shape(self.channels, 0, 0)
        sizes, channels = look(items, self._cache)
        if not sizes:
            self._decode(items, self._shape(1, 8, 8) if not self.size else (1, *self.size))  # raises
        low, high = (("x".join(map(str, size))) for size in (min(sizes), max(sizes)))
        if not self.size and len(sizes) > 1:
            found = f"{self.title} has images of {len(sizes)} sizes, {low} to {high}"
            raise SettingError(f"{found}: set data.image_size, such as 32")
        shape = self._shape(self.channels or channels, *max(sizes))
        if {tuple(shape[1:])} != sizes:
            how = {"crop": "resized and cropped in the middle", "pad": "padded with black"}[self.fit]
            given = f"{low} to {high}" if low != high else low
            rank_zero_info(f"{self.title}: images of {given} are {how}: {'x'.join(map(str, shape[1:]))}")
        return shape

    @property
    def has_captions(self) -> bool:
        """Whether batches hold captions instead of labels."""
        return self._found.captions is not None

    @property
    def training_images(self) -> int:
        """See ``ImageDataModule``; counted before any image is decoded or held out."""
        kept = torch.isin(self._numbered[1], torch.tensor(self._kept_labels))
        return int((kept.numpy() & (np.array(self._found.parts) == "train")).sum())

    def prepare_data(self) -> None:
        """Decode all images, so that each process finds them decoded.

        Raises:
            SettingError: some images cannot be read.
        """
        if isinstance(self._found.images, Items):
            _ = self._decoded

    @cached_property
    def _decoded(self) -> tuple[Tensor, Unreadable]:
        return self._decode(self._found.images, self._stored_shape)

    def _decode(self, items: Items, shape: tuple[int, int, int]) -> tuple[Tensor, Unreadable]:
        processes = self.trainer.num_devices if self.trainer else 1
        images = stored(items, shape, self.fit, self._cache, self.memory_share / processes)
        check_readable(items, images[1], self.skip_unreadable)
        return images

    def _read(self) -> dict[str, Any]:
        found = self._found
        if not isinstance(found.images, Items):
            return super()._read()
        store, unreadable = self._decoded
        everything = ImageTensors(store, self._numbered[1], margin=self.crop, captions=found.captions)
        parts, is_readable = np.array(found.parts), np.ones(len(found.parts), bool)
        is_readable[list(unreadable)] = False
        names = dict.fromkeys(found.parts)
        return {name: everything.subset(torch.from_numpy((parts == name) & is_readable)) for name in names}
