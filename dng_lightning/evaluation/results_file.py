"""Rows of results in a CSV file that grows as they come."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dng_lightning.errors import SettingError
from dng_lightning.files import write_whole


class Table:
    """A CSV file that is whole at any time, with one row for each value of its key.

    Args:
        path: of the file; its folder exists by the time that something is added.
        columns: in their order.
        key: those that tell rows apart.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]) -> None:
        self.path, self.columns, self.key = path, list(columns), list(key)

    def rows(self) -> list[dict[str, str]]:
        """What is in the file, in the order in which it was added; nothing if there is none."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [{name: row.get(name) or "" for name in self.columns} for row in csv.DictReader(file)]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows in one step, numbers to six digits; one takes the place of an earlier one of the same key.

        Args:
            rows: what they lack of the columns stays empty.
        """
        table = {self._key(row): row for row in self.rows()}
        for row in rows:
            texts = {k: f"{v:.6g}" if isinstance(v, float) else "" if v is None else str(v) for k, v in row.items()}
            table[self._key(texts)] = texts
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(table.values())
        write_whole(self.path, text.getvalue().encode())

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether there is a row with these values."""
        return any(row.items() <= found.items() for found in self.rows())

    def _key(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row.get(name, "") for name in self.key)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table that is there.

    Raises:
        SettingError: it is not there, or empty.
    """
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    if not rows:
        raise SettingError(f"no results at {path}: name a folder of dng test")
    return rows
