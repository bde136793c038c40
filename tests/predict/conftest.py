"""The sampler of the tiny model, and the images that its network is evaluated for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from dng_lightning.modules import DiffusionModule, GuidedSampler


@pytest.fixture
def sampler(tiny_checkpoint: Path) -> GuidedSampler:
    return GuidedSampler(str(tiny_checkpoint), classifier="digits-classifier", steps=10)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Images in each call of the network that is sampled from."""
    calls: list[int] = []
    forward = DiffusionModule.forward

    def counted(self: DiffusionModule, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        calls.append(len(x_t))
        return forward(self, x_t, t, class_labels)

    monkeypatch.setattr(DiffusionModule, "forward", counted)
    return calls
