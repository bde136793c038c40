"""A finished training for the tests of the command line."""

from pathlib import Path

import pytest
from running import (
    Dng,
)
from training_folder import TINY_FIT


@pytest.fixture
def tiny_fit(dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `a` of a finished training, below the working directory."""
    monkeypatch.chdir(tmp_path)
    dng("fit", *TINY_FIT, "--trainer.default_root_dir=a")
    return Path("a")
