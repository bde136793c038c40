"""The tests of this folder run in an empty folder."""

import shutil
from pathlib import Path

import pytest

from dng_lightning.data import Digits
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.modules import ClassifierModule


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


# --- comparisons ---


@pytest.fixture
def digits_here(digits: Path) -> list[str]:
    """The model `digits` in a folder of its own, which has nothing beside it."""
    Path("digits").mkdir()
    shutil.copy(digits / "model.ckpt", "digits")
    return [
        "--model.checkpoint=digits",
        "--model.classifier=digits-classifier",
        "--model.steps=2",
        "--data.num_samples=8",
    ]


@pytest.fixture(scope="session")
def statistics() -> ReferenceStatistics:
    data, classifier = Digits(), ClassifierModule.load("digits-classifier")
    data.setup()
    return ReferenceStatistics.compute(data, ClassifierFeatures(classifier, "digits-classifier"), classifier)
