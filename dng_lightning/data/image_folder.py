"""Folders of image files: with a subfolder for each class, without classes, or with a table of labels and captions."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from dng_lightning.data.decode import image_files
from dng_lightning.data.decoded import DecodedImages
from dng_lightning.data.found import Found
from dng_lightning.data.store import Items
from dng_lightning.data.table import check_columns, file_column, find_table, kept_rows, label_columns, read_table
from dng_lightning.errors import SettingError

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # by folder

Listing = tuple[list[Any], list[Any], list[Any]]  # files, their classes if any, their captions if any


@dataclass(eq=False, repr=False)
class ImageFolder(DecodedImages):
    """Your own image files: PNG, JPEG, WebP, TIFF and others, in one of three layouts.

    - ``root/<class>/**/*.png``: a subfolder for each class, named after it; empty subfolders are left out.
    - ``root/*.png``: no classes.
    - a table, CSV or JSON lines, in ``root``: one column holds the file names, relative to ``root``; others hold the
      label or several attributes, and the caption.

    Each layout may also be in subfolders ``train``, ``val`` and ``test`` of ``root``, one for each part. Hidden files
    are skipped. All files are read before the training starts, and unreadable files are listed together.

    In addition to the settings of ``ImageDataModule`` and ``DecodedImages``:

    Args:
        root: the folder.
        table: name of the table; None for the only ``.csv`` or ``.jsonl`` in the folder, if there is one.
        label: column of the label, or several columns whose joined values are the label; ``[]`` for no label; None for
            the column named label or class, or else the only remaining column.
        caption: column of the caption; None for no captions. Batches hold B captions instead of labels.
        where: value, or list of values, of some columns in the rows to keep; case-insensitive. None keeps all rows.

    Raises:
        SettingError: the folder, the files, the table or the settings are invalid.
    """

    table: str | None = None
    label: str | list[str] | None = None
    caption: str | None = None
    where: dict[str, Any] | None = None

    @cached_property
    def _found(self) -> Found:
        if not self.folder.is_dir():
            raise SettingError(
                f"there is no folder {self.folder.absolute()}: name that of your images with --data.root"
            )
        listings = {part: self._listing(path) for part, path in self._parts_of().items()}
        paths, labels, captions = (list(chain(*lists)) for lists in zip(*listings.values(), strict=True))
        parts = [name for name, listing in listings.items() for _ in listing[0]]
        if not paths:
            raise SettingError(f"there are no image files in {self.folder.absolute()}")
        if labels and len(labels) != len(paths):
            raise SettingError(f"{self.root}: some of train, val and test have classes, and some have none")
        trained = {label for label, part in zip(labels, parts, strict=False) if part == "train"}
        if unknown := sorted({*labels} - trained):
            raise SettingError(f"{self.title} has no training image of {', '.join(unknown[:20])}")
        folder, item_names = self.folder, _inside(self.folder, paths)  # strings, which take less memory than paths
        items = Items(lambda place: Image.open(folder / item_names[place]), item_names, _stamp(folder, item_names))
        return Found(items, parts, np.array(labels) if labels else None, None, captions or None)

    def _parts_of(self) -> dict[str, Path]:
        """The folder of each part; the root is the training part if its subfolders are not parts."""
        folders = subfolders(self.folder)
        parts = [PARTS.get(path.name.lower(), "") for path in folders]
        has_table = (self.folder / self.table).is_file() if self.table else find_table(self.folder, None)
        if "train" not in parts or "" in parts or has_table:  # a class may be called "test"
            return {"train": self.folder}
        if len(set(parts)) < len(parts):
            raise SettingError(f"{self.root} has two folders of one part: {', '.join(path.name for path in folders)}")
        return dict(zip(parts, folders, strict=True))

    def _listing(self, folder: Path) -> Listing:
        table = find_table(folder, self.table)
        if table:
            return self._tabled(folder, table)
        for setting, value in {"label": self.label, "caption": self.caption, "where": self.where}.items():
            if value:
                raise SettingError(f"data.{setting} names a column: {folder} has no .csv or .jsonl")
        paths = list(image_files(folder))
        classes = [name.rpartition(os.sep)[0].partition(os.sep)[0] for name in _inside(folder, paths)]
        if "" in classes and any(classes):
            lone = paths[classes.index("")].name
            raise SettingError(f"{folder} has images in it ({lone}) and in subfolders: classes, or none?")
        empty = [path.name for path in subfolders(folder) if path.name not in classes]
        if any(classes) and empty:
            rank_zero_info(f"{folder}: no images in {', '.join(empty)}: no classes")
        return paths, [name for name in classes if name], []

    def _tabled(self, folder: Path, table: Path) -> Listing:
        rows = kept_rows(read_table(table), self.where or {}, table)
        check_columns(rows, [self.caption] if self.caption else [], "caption", table)
        file = file_column(rows, folder, table)
        paths = [folder / row[file] for row in rows]
        if missing := [path.name for path in paths if not path.is_file()]:
            named = ", ".join(missing[:20] + ["..."] * (len(missing) > 20))
            raise SettingError(f"{table} names {len(missing):,} files that are missing: {named}")
        columns = label_columns(rows, self.label, [file, *([self.caption] if self.caption else [])], table)
        labels = [" ".join(row[name] for name in columns) for row in rows] if columns else []
        return paths, labels, [row[self.caption] for row in rows] if self.caption else []


def subfolders(folder: Path) -> list[Path]:
    """The subfolders that are not hidden, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _inside(folder: Path, paths: Sequence[Path]) -> list[str]:
    """The paths relative to a folder; files elsewhere keep their own."""
    start = str(folder / "_")[:-1]  # with the separator, and empty for the current folder
    return [str(path).removeprefix(start) for path in paths]


def _stamp(folder: Path, names: Sequence[str]) -> str:
    """Hash of the names, sizes and modification times (ns) of files; a broken link has no size."""
    digest = hashlib.sha256()
    for name in names:
        try:
            stat = (folder / name).stat()
            version = stat.st_size, stat.st_mtime_ns
        except OSError:
            version = 0, 0
        digest.update(repr((name, version)).encode())
    return digest.hexdigest()
