"""Data sets in the formats of Hugging Face's library, from the hub or from a disk."""

import io
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dng_lightning.data.decoded import DecodedImages, Found
from dng_lightning.data.resize import Fit, Size
from dng_lightning.data.selection import SPLIT_SEED, Classes
from dng_lightning.data.store import MEMORY_SHARE, Items
from dng_lightning.data.tensors import as_labels, named_classes
from dng_lightning.errors import SettingError, reason, require

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}  # by their names there
CACHE = Path("~/.cache/dng_lightning")


class HuggingFaceDataset(DecodedImages):
    """A data set with images by its name on the hub, or from parquet or arrow files (extra ``datasets``).

    The column of images, of labels (class labels) and, where there are none, of captions (text) are found by their
    types. The splits called train, validation and test are the parts; a data set of one split is divided by the seed.

    Args:
        root: name on the hub, a ``.parquet`` or ``.arrow`` file, or a folder of these or of ``save_to_disk``.
        config: of the data set's configurations on the hub; None for its usual one.
        image: column of the images; None for the only one there is.
        label: column of the labels; None for the only one of class labels.
        caption: column of the captions; None for the only one of texts where there are no labels. Batches hold B
            captions in place of the labels.
        first: read only so many images of each split, streamed, for sets that do not fit on the disk; None for all.
        batch_size: images per batch and device, >= 1.
        only: classes to keep, by name or index; None keeps all.
        without: classes to drop, by name or index. Not together with `only`.
        validation: number of training images held out where there is no such split; None for a tenth, 5,000 at most.
            The split is stratified, and the same whatever the filters.
        test: number of images held out for testing where there is no such split; None likewise.
        split_seed: of the images that are held out.
        image_size: side of the images, or height and width; None for their own, if all are of one size.
        fit: how they come to that size: ``crop`` (resized, and cropped in the middle) or ``pad`` (whole, with black).
        crop: pixels by which images are kept larger than `image_size`, for training to crop them at random places.
        flip: mirror training images left to right at random.
        channels: 1 for grey, 3 for colour; None for grey if all images are.
        skip_unreadable: go on without images that cannot be read.
        cache: folder for decoded images that take more than ``memory_share``; None for ``~/.cache/dng_lightning``.
        memory_share: see ``ImageFolder``.
        num_workers: loader processes; 0 is fastest.

    Raises:
        SettingError: the library is not installed, or one line for what is wrong with the data set or the settings.
    """

    def __init__(
        self,
        root: str,
        config: str | None = None,
        image: str | None = None,
        label: str | None = None,
        caption: str | None = None,
        first: int | None = None,
        batch_size: int = 128,
        only: Classes = None,
        without: Classes = None,
        validation: int | None = None,
        test: int | None = None,
        split_seed: int = SPLIT_SEED,
        image_size: int | Size | None = None,
        fit: Fit = "crop",
        crop: int = 0,
        flip: bool = False,
        channels: int | None = None,
        skip_unreadable: bool = False,
        cache: str | None = None,
        memory_share: float = MEMORY_SHARE,
        num_workers: int = 0,
    ) -> None:
        settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "only": only}
        settings |= {"without": without, "validation": validation, "test": test, "split_seed": split_seed}
        settings |= {"image_size": image_size, "fit": fit, "crop": crop, "flip": flip}
        kept_in = Path(cache) if cache else CACHE.expanduser()
        super().__init__(root, channels, skip_unreadable, kept_in, memory_share, settings)
        self.given, self.config, self.first = root, config, first
        self.columns = {"image": image, "label": label, "caption": caption}
        self.library = require("datasets", type(self).__name__, "datasets")

    @property
    def title(self) -> str:
        """With the name, as two names are two data sets."""
        return f"HuggingFaceDataset {self.given}"

    @cached_property
    def _found(self) -> Found:
        try:
            loaded = self._loaded()
        except Exception as error:  # a download, and a foreign file, can fail in any way
            raise SettingError(f"{self.title} cannot be loaded: {reason(error)}") from error
        splits = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
        parts = {SPLITS[name]: split for name, split in splits.items() if name in SPLITS}
        if "train" not in parts:
            if len(splits) > 1:
                raise SettingError(f"{self.title} has no split called train, but {', '.join(splits)}")
            parts = {"train": next(iter(splits.values()))}
        features = parts["train"].features
        image, label, caption = self._columns(features)
        if any(split.features != features for split in parts.values()):
            raise SettingError(f"{self.title} has other columns in some of its splits")
        places = [part for part, split in parts.items() for _ in range(len(split))]
        rows = self.library.concatenate_datasets(list(parts.values()))
        names, labels = self._classes(rows, label)
        undecoded = rows.select_columns(image).cast_column(image, self.library.Image(decode=False))
        told = [f"{part} {place}" for part, split in parts.items() for place in range(len(split))]
        items = Items(partial(_opened, undecoded, image), told, f"{self.title} {rows._fingerprint}")
        return Found(items, places, names, labels, list(map(str, rows[caption])) if caption else None)

    def _loaded(self) -> Any:
        """A data set, or several by the names of their splits."""
        path = Path(self.given)
        if path.suffix == ".arrow":
            return self.library.Dataset.from_file(str(path))
        if any((path / file).is_file() for file in ("dataset_info.json", "dataset_dict.json")):
            return self.library.load_from_disk(str(path))
        source = {"path": "parquet", "data_files": str(path)} if path.is_file() else {"path": self.given}
        if self.first is None:
            return self.library.load_dataset(**source, name=self.config)
        streams = self.library.load_dataset(**source, name=self.config, streaming=True)
        return {name: self._taken(stream) for name, stream in streams.items() if name in SPLITS or len(streams) == 1}

    def _taken(self, stream: Any) -> Any:
        """The first rows of a stream as a data set."""
        (image, *_), features = self._columns(stream.features), stream.features
        rows = list(stream.cast_column(image, self.library.Image(decode=False)).take(self.first))
        return self.library.Dataset.from_list(rows, features=features)

    def _columns(self, features: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
        """The columns of images, of labels and of captions."""
        for setting, name in self.columns.items():
            if name is not None and name not in features:
                raise SettingError(f"data.{setting}: {self.title} has no column {name!r}; it has {', '.join(features)}")
        image = self._column("image", [name for name, kind in features.items() if kind == self.library.Image()])
        if image is None:
            raise SettingError(f"{self.title} has no column of images; it has {', '.join(features)}")
        is_class = [name for name, kind in features.items() if isinstance(kind, self.library.ClassLabel)]
        is_text = [name for name, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
        label = self._column("label", is_class if self.columns["caption"] is None else is_class[:1])
        return image, label, self._column("caption", [] if label else is_text)

    def _column(self, setting: str, candidates: list[str]) -> str | None:
        if (given := self.columns[setting]) is not None:
            return given
        if len(candidates) > 1:
            raise SettingError(f"{self.title}: which column is the {setting}? Set data.{setting}: {candidates}")
        return candidates[0] if candidates else None

    def _classes(self, rows: Any, label: str | None) -> tuple[tuple[str, ...], list[int]]:
        if label is None:
            return (), [0] * len(rows)
        labels = as_labels(np.array(rows[label]), len(rows), self.title)
        classes = named_classes(labels, getattr(rows.features[label], "names", None), self.title)
        numbers = {value: number for number, value in enumerate(classes)}
        return tuple(classes.values()), [numbers[value] for value in labels.tolist()]


def _opened(rows: Any, column: str, place: int) -> Image.Image:
    stored = rows[place][column]
    return Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"])
