"""Folders of images in tests."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dng_lightning.data import ImageFolder
from dng_lightning.errors import SettingError


def write(path: Path, level: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    """An image of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size[::-1], level).convert(mode).save(path)


def ready(root: Path, **settings: Any) -> ImageFolder:
    """A prepared folder of images."""
    data = ImageFolder(str(root), **settings)
    data.prepare_data()
    data.setup()
    return data


def complaint(root: Path, **settings: Any) -> str:
    """The line that refuses a folder."""
    with pytest.raises(SettingError) as caught:
        ready(root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(folder: Path, rows: list[dict[str, Any]], name: str = "metadata.csv") -> None:
    """Write a table of images, CSV or JSON lines."""
    with (folder / name).open("w", newline="") as file:
        if name.endswith("csv"):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def levels(data: ImageFolder, part: str) -> list[int]:
    """The grey level of each image of a part."""
    return data.part(part).images[:, 0, 0, 0].tolist()
