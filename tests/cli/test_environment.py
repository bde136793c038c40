"""An output is made again, bit for bit, from the files beside it."""

import csv
import json
from pathlib import Path

import pytest
import torch
from running import Dng

from dng_lightning import __version__
from dng_lightning.cli import environment

FIT = ["--config=digits.yaml", "--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.max_steps=3"]
FIT += ["--trainer.limit_val_batches=1", "--trainer.callbacks=[{class_path: EMA}, {class_path: Export}]"]
SAMPLED = ["--data.num_samples=5", "--data.batch_size=3", "--data.first_seed=7"]


def again(dng: Dng, command: str, place: Path, *settings: str) -> tuple[Path, Path]:
    """The folders of a command and of one with the configuration that it saved."""
    first, second = place / "first", place / "second"
    dng(command, *settings, f"--trainer.default_root_dir={first}")
    dng(command, f"--config={first / 'config.yaml'}", f"--trainer.default_root_dir={second}")
    entries = [json.loads((folder / "environment.json").read_text()) for folder in (first, second)]
    assert entries[0] == entries[1]
    return first, second


def test_a_training(dng: Dng, tmp_path: Path):
    folders = again(dng, "fit", tmp_path, *FIT, "--seed_everything=3")
    one, other = (torch.load(folder / "model.ckpt", weights_only=True)["state_dict"] for folder in folders)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    (entry,) = json.loads((folders[0] / "environment.json").read_text())
    assert entry["versions"].keys() >= {"dng_lightning", "python", "torch", "lightning", "numpy"}
    assert entry["versions"]["dng_lightning"] == __version__
    assert entry["versions"]["torch"] == torch.__version__
    assert (entry["seed_everything"], entry["processes"], entry["device"][:3]) == (3, 1, "cpu")


def test_images(dng: Dng, from_tiny: list[str], tmp_path: Path):
    first, second = again(dng, "predict", tmp_path, *from_tiny, *SAMPLED)
    images = [path.relative_to(first) for path in first.rglob("*.png")]
    assert len(images) == 5 + 5 + 2  # unguided ones as well, grid and trajectories
    assert all((first / image).read_bytes() == (second / image).read_bytes() for image in images)
    assert (first / "labels.csv").read_bytes() == (second / "labels.csv").read_bytes()


def test_rows(dng: Dng, from_tiny: list[str], tmp_path: Path):
    folders = again(dng, "test", tmp_path, *from_tiny, *SAMPLED, "--data.reference_data=Digits")
    tables = [list(csv.DictReader((folder / "results.csv").open(newline=""))) for folder in folders]
    for one, other in zip(*tables, strict=True):
        assert one | {"images_per_second": ""} == other | {"images_per_second": ""}


def test_another_environment_is_another_entry(
    dng: Dng, from_tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["predict", *from_tiny, f"--trainer.default_root_dir={tmp_path}"]
    dng(*words, "--data.num_samples=1")
    dng(*words, "--data.num_samples=2")
    assert len(json.loads((tmp_path / "environment.json").read_text())) == 1
    monkeypatch.setattr(environment, "__version__", "99")
    dng(*words, "--data.num_samples=3")
    entries = json.loads((tmp_path / "environment.json").read_text())
    assert [entry["versions"]["dng_lightning"] for entry in entries] == [__version__, "99"]
