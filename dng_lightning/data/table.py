"""Tables of image files: CSV or JSON lines with the file name, the label or attributes, and the caption."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dng_lightning.errors import SettingError, reason

Row = dict[str, str]
SUFFIXES = (".csv", ".jsonl")


def find_table(folder: Path, name: str | None) -> Path | None:
    """The table called ``name``, or the only table of the folder; None without a table.

    Raises:
        SettingError: the named table is missing, or there are several tables.
    """
    if name is not None:
        for path in (folder / name, Path(name)):
            if path.is_file():
                return path
        raise SettingError(f"data.table: there is no {folder / name}")
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise SettingError(f"{folder} has {len(found)} tables: name one of {names} with data.table")
    return found[0] if found else None


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV with a header, or of a file with one JSON object per line; all values as text.

    Raises:
        SettingError: the file is damaged or empty, or its rows have different columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                rows: list[dict[str, object]] = list(csv.DictReader(file))
            else:
                rows = [json.loads(line) for line in file if line.strip()]
        columns = [name for name in rows[0] if name is not None]  # csv names excess cells None
        uneven = next((number for number, row in enumerate(rows, 1) if {*row} != {*columns} or None in row.values()), 0)
    except (OSError, ValueError, IndexError, TypeError, csv.Error) as error:
        raise SettingError(f"{path} is no table of rows: {reason(error)}") from error
    if uneven:
        raise SettingError(f"{path}: row {uneven} has other columns than {', '.join(columns)}, or none for one of them")
    return [{name: str(value) for name, value in row.items()} for row in rows]


def file_column(rows: Sequence[Row], folder: Path, path: Path) -> str:
    """The column of file names: the first in which some value is an existing file.

    Raises:
        SettingError: there is no such column.
    """
    for name in rows[0]:
        if any(row[name] and (folder / row[name]).is_file() for row in rows):
            return name
    columns = ", ".join(rows[0])
    raise SettingError(
        f"{path}: no column names files in {folder}; it has {columns}. To have classes by folder, move the table"
    )


def label_columns(rows: Sequence[Row], label: str | list[str] | None, others: Sequence[str], path: Path) -> list[str]:
    """The columns of the label: those of the setting, else the one named label or class, else the only one left.

    Args:
        rows: rows of the table.
        label: the setting ``data.label``.
        others: columns of other content: file name and caption.
        path: path of the table, for messages.

    Raises:
        SettingError: there is no such column, or there are several candidates.
    """
    if label is not None:
        names = [label] if isinstance(label, str) else label
        check_columns(rows, names, "label", path)
        return names
    left = [name for name in rows[0] if name not in others]
    found = [name for name in left if name.lower() in ("label", "class")] or left
    if len(found) > 1:
        raise SettingError(f"{path}: which column is the label? Set data.label to some of {', '.join(left)}, or to []")
    return found


def kept_rows(rows: Sequence[Row], where: Mapping[str, Any], path: Path) -> list[Row]:
    """The rows with the required values.

    Args:
        rows: rows of the table.
        where: required value, or list of values, of some columns; case-insensitive.
        path: path of the table, for messages.

    Raises:
        SettingError: there is no such column, or no row is left.
    """
    check_columns(rows, list(where), "where", path)
    allowed = {
        name: {str(value).lower() for value in (given if isinstance(given, list) else [given])}
        for name, given in where.items()
    }
    kept = [row for row in rows if all(row[name].lower() in values for name, values in allowed.items())]
    if not kept:
        raise SettingError(f"data.where: no row of {path} has {dict(where)}")
    return kept


def check_columns(rows: Sequence[Row], names: Sequence[str], setting: str, path: Path) -> None:
    """Check that a table has the columns.

    Raises:
        SettingError: a column is missing; the message names the first.
    """
    for name in names:
        if name not in rows[0]:
            raise SettingError(f"data.{setting}: {path} has no column {name!r}; it has {', '.join(rows[0])}")
