"""From a folder of photographs to a guided grid in three commands, and to a comparison in a fourth; no YAML written."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from mixed_photos import CLASSES, mixed_photos
from running import Dng

from dng_lightning.data import ImageFolder
from dng_lightning.data.pixels import from_png
from dng_lightning.networks.precision import fastest_precision

SHORT = ["--trainer.max_steps=8", "--data.batch_size=4"]
FEW = ["--data.num_samples=6", "--model.steps=2"]


@pytest.mark.usefixtures("rendered")
def test_from_a_folder_to_a_guided_grid(
    dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog
):
    monkeypatch.chdir(tmp_path)
    mixed_photos(tmp_path / "photos", 2000)
    found = ImageFolder(root="photos")
    assert found.class_names == tuple(sorted(CLASSES))
    assert found.training_images == 2000
    assert found.image_shape == (3, 64, 64)

    with caplog.at_level("INFO"):
        dng("fit", "--config=image_folder.yaml", "--data.root=photos", *SHORT)
        dng("fit", "--config=image_folder_classifier.yaml", "--data.root=photos", *SHORT)
    chosen = re.findall(r"For 2,000 images of 3x64x64 in 10 classes on cpu: (.*)", caplog.text)
    assert len(chosen) == 2
    precision = fastest_precision(torch.device("cpu"))
    assert all(f"trainer.precision {precision}" in line for line in chosen)
    capsys.readouterr()

    dng("predict", "--model.checkpoint=logs/image-folder", "--model.forbidden=two words", *FEW)
    out = capsys.readouterr().out
    folder = Path("samples/image-folder-without-two_words-DynamicNegativeGuidance")
    assert f"written to {folder}" in out
    assert from_png(folder / "grid.png").float().std() > 10
    labels = [row["label"] for row in rows_of(folder / "labels.csv")]
    assert len(labels) == 6
    assert set(labels) <= set(CLASSES)

    _, *words = shlex.split(out.splitlines()[-1].removeprefix("next: "))
    assert words == ["test", "--model.checkpoint", "logs/image-folder", "--model.forbidden", "two words"]
    dng(*words, *FEW)
    rows = rows_of(Path("results/image-folder-without-two_words/results.csv"))
    assert {"Unguided", "NegativePrompting", "DynamicNegativeGuidance"} <= {row["method"] for row in rows}
    assert all(float(row["fd_retained"]) > 0 for row in rows if row["method"] == "NegativePrompting")
    config = yaml.safe_load(Path("logs/image-folder/config.yaml").read_text())
    assert config["trainer"]["precision"] == precision


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))
