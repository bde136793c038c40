"""CSV files of results, which grow row by row."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dng_lightning.errors import SettingError, reason
from dng_lightning.storage.files import write_whole

NUMBERS = {  # of tables and figures, also with _low and _high
    *("scale", "n", "steps", "forbidden_rate", "kl_retained", "kl_all", "kl_unguided", "fd_retained", "fd_all", "kid"),
    *("precision", "recall", "rmse_to_unguided", "nfe", "prompt_accuracy", "kl_unspecified"),
}
NEEDED = {"method", "forbidden_rate", "tracker"}


class Table:
    """A CSV file with one row for each value of its key, which is replaced atomically.

    Args:
        path: path of the file; its folder must exist when rows are added.
        columns: names of the columns, in order.
        key: columns that identify a row.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]) -> None:
        self.path, self.columns, self.key = path, list(columns), list(key)

    def rows(self) -> list[dict[str, str]]:
        """The rows of the file, in the order of addition; empty without a file.

        Raises:
            SettingError: the file is damaged, or another table.
        """
        rows = [{name: row.get(name) or "" for name in self.columns} for row in _rows(self.path)]
        if lacking := [name for name in self.columns if name in NEEDED and not all(row[name] for row in rows)]:
            raise _damaged(self.path, f"a row without {lacking[0]}")
        return rows

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows atomically, floats with six digits; a row replaces an earlier row of the same key.

        Args:
            rows: values by column; missing columns stay empty.
        """
        table = {self._key(row): row for row in self.rows()}
        for row in rows:
            texts = {k: f"{v:.6g}" if isinstance(v, float) else "" if v is None else str(v) for k, v in row.items()}
            table[self._key(texts)] = texts
        write_whole(self.path, csv_text(self.columns, table.values()).encode())

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether there is a row with these values."""
        return any(row.items() <= found.items() for found in self.rows())

    def _key(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row.get(name, "") for name in self.key)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The content of a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of an existing table.

    Raises:
        SettingError: the file is missing, or has no rows.
    """
    if rows := _rows(path):
        return rows
    raise SettingError(f"no results at {path}: name a folder of dng test")


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            json.loads(row.get("guidance") or "{}")
            for name, value in row.items():
                if name is None or name.removesuffix("_low").removesuffix("_high") in NUMBERS:
                    float(value or 0)
            for count in (row.get("class_counts") or "").split():
                int(count)
    except (ValueError, TypeError, csv.Error) as error:  # a TypeError: more cells than columns
        raise _damaged(path, reason(error)) from error
    return rows


def _damaged(path: Path, why: str) -> SettingError:
    return SettingError(f"{path} is damaged ({why}): remove it, and its rows are computed anew")
