"""Tiny text-to-image models: Stable Diffusion with random weights, and parts of one in training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import tiny

from dng_lightning.text_to_image import TextToImageModel

EXTRA = "is not installed (extra text-to-image)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a Stable Diffusion."""
    return tiny(tmp_path_factory.mktemp("stable") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextToImageModel:
    return TextToImageModel.load(str(folder))


@pytest.fixture
def capture_info(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said."""
    said: list[str] = []
    for name in ("model", "prompts"):
        monkeypatch.setattr(f"dng_lightning.text_to_image.{name}.inform", said.append)
    return said


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """The pipelines of all families by name, each made when it is first used."""
    from tiny_pipelines import FAMILIES, enlarge

    class Opened(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            torch.manual_seed(0)
            self[name] = FAMILIES[name].build()
            self[name].set_progress_bar_config(disable=True)
            for part in self[name].components.values():
                if isinstance(part, torch.nn.Module):
                    enlarge(part)
            return self[name]

    return Opened()
