"""Prompts from a CSV or JSONL file, one image for each row."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dng_lightning.errors import SettingError, reason
from dng_lightning.text_to_image.prompts import texts_of


@dataclass(frozen=True)
class PromptRow:
    """The texts and the seed of an image.

    Attributes:
        prompt: the prompt.
        negatives: the negative prompts.
        seed: seed of the noise; None for the number of the image.
    """

    prompt: str
    negatives: tuple[str, ...]
    seed: int | None = None


def read_prompts(path: str | Path, negatives: Sequence[str] = ()) -> list[PromptRow]:
    """Read a file with a column ``prompt``, and optionally ``negative_prompt`` and ``seed``.

    Args:
        path: a ``.csv`` or a ``.jsonl`` file; several negative prompts are a list, in CSV in the notation of JSON.
        negatives: negative prompts of all rows, for a file without that column.

    Raises:
        SettingError: the file is missing or damaged, or a row lacks a text, or has a wrong seed or that of another.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows: list[Mapping[str, Any]] = list(csv.DictReader(io.StringIO(text, newline="")))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            raise SettingError(f"prompts {path} must be a .csv or a .jsonl file")
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise SettingError(f"prompts {path} cannot be read: {reason(error)}") from error
    if not rows:
        raise SettingError(f"prompts {path} has no rows")
    found = [_row(f"prompts {path}, row {number}", row, negatives) for number, row in enumerate(rows, 1)]
    if len({len(row.negatives) for row in found}) > 1:
        raise SettingError(f"prompts {path}: all rows must have the same number of negative prompts")
    first: dict[int, int] = {}
    for number, row in enumerate(found, 1):
        if row.seed is not None and (other := first.setdefault(row.seed, number)) != number:
            raise SettingError(f"prompts {path}, row {number}: seed {row.seed} is that of row {other} too")
    return found


def _row(where: str, row: Any, negatives: Sequence[str]) -> PromptRow:
    if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str):
        columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise SettingError(f"{where} has no prompt; its columns are {columns}")
    if not row["prompt"].strip():
        raise SettingError(f"{where}: prompt is empty")
    texts: list[Any] = list(negatives)
    try:
        if "negative_prompt" in row:
            own = row["negative_prompt"]
            own = json.loads(own) if isinstance(own, str) and own.lstrip().startswith("[") else own
            texts = (own if isinstance(own, list) else [own or ""]) or [""]
        if not all(isinstance(text, str) for text in texts):
            raise SettingError(f"negative_prompt must be a text or a list of texts; got {own!r}")
        _, found = texts_of(row["prompt"], texts)
    except json.JSONDecodeError as error:
        raise SettingError(f"{where}: negative_prompt is no JSON list: {reason(error)}") from error
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from error
    seed = row.get("seed")
    if seed in (None, ""):
        return PromptRow(row["prompt"], tuple(found))
    if not str(seed).strip().isdecimal() or int(seed) >= 2**32:
        raise SettingError(f"{where}: seed must be a whole number from 0 to 2^32 - 1; got {seed!r}")
    return PromptRow(row["prompt"], tuple(found), int(seed))
