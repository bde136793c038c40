"""Where the networks are that real and generated images are compared by."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dng_lightning.callbacks import ResultsWriter, compared_with
from dng_lightning.data import Seeds
from dng_lightning.evaluation import features as evaluated
from dng_lightning.evaluation.features import FeatureExtractor
from dng_lightning.modules import GuidedSampler

ELSEWHERE = torch.device("meta")  # a device that every machine has


class Inception(FeatureExtractor):
    def __init__(self, weights: str | None) -> None:
        super().__init__("inception-2048", nn.Linear(1, 1), 1)

    def _extract(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("features", ["classifier", "inception"])
def test_real_images_are_looked_at_on_the_trainer_s_device(
    features: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Lightning moves the module there only after the callbacks are set up."""
    seen: list[torch.device] = []

    def look(trainer: Any, module: GuidedSampler, data: Seeds, by: FeatureExtractor) -> None:
        assert module.classifier is not None
        seen.extend([next(by.net.parameters()).device, module.classifier.device, next(module.parameters()).device])

    monkeypatch.setattr(compared_with, "InceptionFeatures", Inception)
    monkeypatch.setattr(compared_with, "real_images", look)
    monkeypatch.setattr(evaluated, "fingerprint", lambda net: "")  # of weights that this device does not hold
    strategy = SimpleNamespace(root_device=ELSEWHERE, barrier=lambda name: None)
    trainer = SimpleNamespace(
        strategy=strategy, datamodule=Seeds(), default_root_dir=str(tmp_path), is_global_zero=True
    )
    sampler = GuidedSampler(str(digits), classifier="digits-classifier", steps=2)
    ResultsWriter(features).setup(trainer, sampler, "test")  # type: ignore[arg-type]  # all of a trainer that it looks at
    assert seen == [ELSEWHERE] * 3
