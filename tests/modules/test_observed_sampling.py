"""Sampling from a checkpoint with an observer, and which guidances GuidedSampler and GuidedSampling refuse."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dng_lightning.callbacks import GuidedSampling
from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, NormalizedAttention, Unguided
from dng_lightning.modules import ClassifierModule, GuidedSampler
from dng_lightning.posterior import ObserverPosterior, TrackedPosterior

NAG = NormalizedAttention(Unguided())


def observed(observe_steps: list[float]) -> DynamicNegativeGuidance:
    return DynamicNegativeGuidance(5.0, ObserverPosterior(TrackedPosterior(), observe_steps, threshold=0.0))


def test_the_classifier_is_the_observer(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[Tensor] = []
    probabilities = ClassifierModule.probabilities

    def watched(self: ClassifierModule, x: Tensor) -> Tensor:
        shown.append(x)
        return probabilities(self, x)

    monkeypatch.setattr(ClassifierModule, "probabilities", watched)
    guidance = observed([0.25, 0.5])
    sampler = GuidedSampler(str(tiny_checkpoint), [3, 5], guidance, classifier="digits-classifier", steps=4)
    samples = sampler.draw([0, 1, 2])
    looks = list(shown)
    assert len(looks) == 2
    assert all(x.abs().max() <= 1 for x in looks)
    assert samples.nfe == 4 + 2 * 2  # two conditions at the last two steps
    assert samples.posterior is not None
    assert (samples.posterior[:, :2] == 0).all()
    assert (samples.posterior[:, 2:] > 0).all()
    assert looks[0].shape == samples.images.shape
    p = probabilities(sampler.classifier, looks[0])[:, [3, 5]]
    torch.testing.assert_close(samples.posterior[:, 2] >= p.clamp(max=0.4), torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(probabilities(sampler.classifier, looks[0]).sum(1), torch.ones(3))


def test_another_classifier_can_be_the_observer_and_the_row_names_it(tiny_checkpoint: Path):
    settings = {"forbidden": [3, 5], "guidance": observed([0.25]), "steps": 4}
    own = GuidedSampler(str(tiny_checkpoint), classifier="digits-classifier", **settings)
    other = GuidedSampler(str(tiny_checkpoint), classifier=None, observer="digits-classifier", **settings)
    torch.testing.assert_close(other.draw([0, 1]).images, own.draw([0, 1]).images)
    assert other.draw([0]).nfe == 4 + 2 * 2
    assert json.loads(other.draws[1].run.settings)["observer"] == "digits-classifier"
    assert "observer" not in json.loads(own.draws[1].run.settings)
    assert "observer" not in json.loads(other.draws[0].run.settings)  # nobody looks at unguided images
    with pytest.raises(
        SettingError, match=r"observer mnist-classifier has images of another shape than .* \(\(1, 28, 28\), not"
    ):
        GuidedSampler(str(tiny_checkpoint), classifier=None, observer="mnist-classifier", **settings)


def test_without_an_observer_one_line_says_so(tiny_checkpoint: Path):
    guidance = observed([0.25])
    with pytest.raises(SettingError, match=r"Dynamic.*, observer needs an observer: .*setting observer"):
        GuidedSampler(str(tiny_checkpoint), guidance=guidance, classifier=None)
    with pytest.raises(SettingError, match=r"GuidedSampling has no .* observer: Dynamic"):
        GuidedSampling(guidance=guidance)


def test_where_there_is_no_text_one_line_says_so(tiny_checkpoint: Path):
    with pytest.raises(SettingError, match=r"NormalizedAttention\(Unguided\) acts in .* of a TextToImageSampler"):
        GuidedSampler(str(tiny_checkpoint), guidance=NAG, classifier=None)
    with pytest.raises(SettingError, match=r"GuidedSampling has no .*text.*: NormalizedAttention is not for it"):
        GuidedSampling(guidance=NAG)
