"""Data sets of Hugging Face's ``datasets`` library, from the hub or from local files."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dng_lightning.data.decoded import DecodedImages
from dng_lightning.data.found import Found
from dng_lightning.data.store import Items
from dng_lightning.data.tensors import as_labels
from dng_lightning.errors import SettingError, check_at_least, reason, require

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}  # by name in the library


@dataclass(eq=False, repr=False)
class HuggingFaceDataset(DecodedImages):
    """An image data set on the Hugging Face hub, or in parquet or arrow files (extra ``datasets``).

    The columns of images, of class labels and, without labels, of captions (text) are found by their types. The splits
    train, validation and test are the parts; a data set of one split is divided by ``split_seed``.

    In addition to the settings of ``ImageDataModule`` and ``DecodedImages``:

    Args:
        root: name on the hub, a ``.parquet`` or ``.arrow`` file, or a folder of these or of ``save_to_disk``.
        config: name of a configuration of the data set on the hub; None for the default.
        image: column of the images; None if there is only one.
        label: column of the labels; None for the only column of class labels.
        caption: column of the captions; None for the only column of text if there are no labels. Batches hold B
            captions instead of labels.
        first: number of images to stream from each split, for data sets that do not fit on the disk; None for all.

    Raises:
        SettingError: the library is not installed, or the data set or the settings are invalid.
    """

    root: str
    config: str | None = None
    image: str | None = None
    label: str | None = None
    caption: str | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, **{"data.first": self.first})
        self.columns = {"image": self.image, "label": self.label, "caption": self.caption}
        self.datasets = require("datasets", type(self).__name__, "datasets")

    @property
    def default_cache(self) -> Path:
        """A folder of the user's cache, as the data may be in the library's own cache."""
        return Path("~/.cache/dng_lightning").expanduser()

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
        if any(split.features != parts["train"].features for split in parts.values()):
            raise SettingError(f"{self.title} has other columns in some of its splits")
        return self._contents(parts)

    def _contents(self, parts: Mapping[str, Any]) -> Found:
        """The contents of the data set of each part."""
        features = parts["train"].features
        image, label, caption = self._columns(features)
        places = [(part, place) for part, split in parts.items() for place in range(len(split))]
        rows = self.datasets.concatenate_datasets(list(parts.values()))
        labels = as_labels(np.array(rows[label]), len(rows), self.title) if label else None
        names = getattr(features[label], "names", None) if label else None
        undecoded = rows.select_columns(image).cast_column(image, self.datasets.Image(decode=False))

        def opened(place: int) -> Image.Image:
            stored = undecoded[place][image]
            return Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"])

        item_names = [f"{part} {place}" for part, place in places]
        items = Items(opened, item_names, f"{self.title} {rows._fingerprint}")
        captions = list(map(str, rows[caption])) if caption else None
        return Found(items, [part for part, _ in places], labels, names, captions)

    def _loaded(self) -> Any:
        """A data set, or a data set for each split by name."""
        path = Path(self.root)
        if path.suffix == ".arrow":
            return self.datasets.Dataset.from_file(str(path))
        if any((path / file).is_file() for file in ("dataset_info.json", "dataset_dict.json")):
            return self.datasets.load_from_disk(str(path))
        if self.first is None:
            return self._from_hub()
        return {
            name: self._taken(self._undecoded(stream).take(self.first), stream.features)
            for name, stream in self._streams.items()
        }

    def _from_hub(self, **settings: Any) -> Any:
        source = {"path": "parquet", "data_files": self.root} if Path(self.root).is_file() else {"path": self.root}
        return self.datasets.load_dataset(**source, name=self.config, **settings)

    @cached_property
    def _streams(self) -> dict[str, Any]:
        """The splits that are parts, as streams of rows."""
        streams = self._from_hub(streaming=True)
        return {name: stream for name, stream in streams.items() if name in SPLITS or len(streams) == 1}

    def _undecoded(self, stream: Any) -> Any:
        image, *_ = self._columns(stream.features)
        return stream.cast_column(image, self.datasets.Image(decode=False))

    def _taken(self, rows: Iterable[Any], features: Any) -> Any:
        """Some rows of a stream as a data set."""
        return self.datasets.Dataset.from_list(list(rows), features=features)

    def _columns(self, features: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
        """The columns of images, of labels and of captions."""
        for setting, name in self.columns.items():
            if name is not None and name not in features:
                raise SettingError(f"data.{setting}: {self.title} has no column {name!r}; it has {', '.join(features)}")
        image = self._column("image", [name for name, kind in features.items() if kind == self.datasets.Image()])
        if image is None:
            raise SettingError(f"{self.title} has no column of images; it has {', '.join(features)}")
        is_class = [name for name, kind in features.items() if isinstance(kind, self.datasets.ClassLabel)]
        is_text = [name for name, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
        label = self._column("label", is_class if self.columns["caption"] is None else is_class[:1])
        return image, label, self._column("caption", [] if label else is_text)

    def _column(self, setting: str, candidates: list[str]) -> str | None:
        if (given := self.columns[setting]) is not None:
            return given
        if len(candidates) > 1:
            raise SettingError(f"{self.title}: which column is the {setting}? Set data.{setting}: {candidates}")
        return candidates[0] if candidates else None
