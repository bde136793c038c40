"""Rows of images in Hugging Face's formats."""

import io
from typing import Any

import pytest
from PIL import Image

datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra datasets)")

NAMES = ["cat", "dog", "horse"]
FEATURES = {
    "picture": datasets.Image(),
    "kind": datasets.ClassLabel(names=NAMES),
    "text": datasets.Value("string"),
    "weight": datasets.Value("int64"),
}


def png(level: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (size, size), level).save(file, "PNG")
    return file.getvalue()


def rows(count: int, without: str | None = None, **changed: Any) -> Any:
    columns = {
        "picture": [{"bytes": png(n), "path": None} for n in range(count)],
        "kind": [n % 3 for n in range(count)],
        "text": [f"a {NAMES[n % 3]}, number {n}" for n in range(count)],
        "weight": [n % 2 for n in range(count)],
    } | changed
    kept = {name: kind for name, kind in FEATURES.items() if name != without}
    return datasets.Dataset.from_dict({name: columns[name] for name in kept}, features=datasets.Features(kept))
