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
    found: list[PromptRow] = []
    first: dict[int, int] = {}
    for number, row in enumerate(rows, 1):
        try:
            found.append(_row(row, negatives))
            if (seed := found[-1].seed) is not None and (other := first.setdefault(seed, number)) != number:
                raise SettingError(f"seed {seed} is that of row {other} too")
        except SettingError as error:
            raise SettingError(f"prompts {path}, row {number}: {error}") from error
    if len({len(row.negatives) for row in found}) > 1:
        raise SettingError(f"prompts {path}: all rows must have the same number of negative prompts")
    return found


def _row(row: Any, negatives: Sequence[str]) -> PromptRow:
    if not isinstance(row, Mapping) or not isinstance(prompt := row.get("prompt"), str):
        columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise SettingError(f"there is no prompt; the columns are {columns}")
    if not prompt.strip():
        raise SettingError("prompt is empty")
    texts: list[Any] = list(negatives)
    if "negative_prompt" in row:
        own = row["negative_prompt"]
        if isinstance(own, str) and own.lstrip().startswith("["):
            try:
                own = json.loads(own)
            except json.JSONDecodeError as error:
                raise SettingError(f"negative_prompt is no JSON list: {reason(error)}") from error
        texts = (own if isinstance(own, list) else [own or ""]) or [""]
        if not all(isinstance(text, str) for text in texts):
            raise SettingError(f"negative_prompt must be a text or a list of texts; got {own!r}")
    _, found = texts_of(prompt, texts)
    seed = row.get("seed") if row.get("seed") != "" else None
    if seed is not None and (not str(seed).strip().isdecimal() or int(seed) >= 2**32):
        raise SettingError(f"seed must be a whole number from 0 to 2^32 - 1; got {seed!r}")
    return PromptRow(prompt, tuple(found), None if seed is None else int(seed))
