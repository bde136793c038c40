"""Pipelines for the tests of this folder."""

from pathlib import Path
from typing import Any

import pytest
from bridged import opened, opened_modular
from tiny_diffusion import tiny


@pytest.fixture(scope="session")
def folder_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("stable") / "tiny-xl", xl=True)


@pytest.fixture
def pipeline(folder: Path) -> Any:
    return opened(folder)


@pytest.fixture
def modular(folder_xl: Path) -> Any:
    return opened_modular(folder_xl)
