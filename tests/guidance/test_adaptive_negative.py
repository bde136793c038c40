"""Only what is emerging is evaluated and negated."""

import math

import pytest
import torch
from by_hand import LINEAR
from mixture import BatchNoise, GaussianMixture, Trajectory, ring, trajectory

from dng_lightning.errors import SettingError
from dng_lightning.guidance import AdaptiveNegative, DynamicNegativeGuidance, NegativePrompting, SafeLatentDiffusion
from dng_lightning.guidance.serialization import display_name_with_scale
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.posterior import ClassifierPosterior, ConstantPosterior, ObserverPosterior, TrackedPosterior
from dng_lightning.sampling import Recorder, Sampler, WithObserver, sample

RING = GaussianMixture(LINEAR, ring(1.5, 10, 2), 0.15)
FORBIDDEN = [0, 3, 6]
PRESENCE = torch.tensor([[0.9, 0.0, 0.3], [0.0, 0.2, 0.0], [0.05, 0.0, 0.0], [0.0, 0.1, 1.0]])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.1, [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]]),
        (0.5, [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]),
        (0.01, [[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]]),
    ],
)
def test_what_emerges_is_evaluated_from_the_next_step_to_the_next_look_and_nothing_else(threshold, expected):
    predictor = RING.shared(FORBIDDEN)
    says = iter([PRESENCE, torch.zeros(4, 3)])
    observed = WithObserver(predictor, lambda denoised: next(says))
    guidance = AdaptiveNegative(NegativePrompting(), ObserverPosterior(None, [0.2, 0.6], threshold))
    counted: list[int] = []

    class Counted(Recorder):
        def record(self, step: Step, x_t, x_s, predictions: Predictions, guided: Guided) -> None:
            counted.append(predictor.nfe)
            pushed = torch.tensor(expected).any(1) if 2 < step.index <= 6 else torch.zeros(4, dtype=torch.bool)
            assert torch.equal(guided.scale, pushed.float())

    sample(observed, guidance, LINEAR, BatchNoise((4, 2)), Sampler(10), [Counted()])
    spent = torch.tensor([0, *counted]).diff().tolist()
    assert spent == [4] * 3 + [4 + int(torch.tensor(expected).sum())] * 4 + [4] * 3
    assert observed.nfe == predictor.nfe


@pytest.mark.parametrize(
    "method",
    [NegativePrompting(0.7), SafeLatentDiffusion(2.0), DynamicNegativeGuidance(2.0, TrackedPosterior(0.2))],
    ids=display_name_with_scale,
)
def test_with_all_conditions_active_it_is_the_guidance_inside_bit_for_bit(method):
    runs = [
        trajectory(RING, guidance, FORBIDDEN, Sampler(50), BatchNoise((64, 2)))
        for guidance in (
            method,
            AdaptiveNegative(method, ConstantPosterior(0.3)),
            AdaptiveNegative(method, TrackedPosterior(0.1, p_min=1e-6), threshold=1e-9),
            AdaptiveNegative(method, ClassifierPosterior()),
        )
    ]
    for run in runs[1:]:
        assert torch.equal(run.x_0, runs[0].x_0)
        assert torch.equal(run.scale, runs[0].scale)


def test_by_a_classifier_conditions_above_the_threshold_are_negated_at_each_step():
    guidance = AdaptiveNegative(NegativePrompting(1.5), ClassifierPosterior(), threshold=0.25)
    run, predictor = Trajectory(), RING.predictor(guidance, FORBIDDEN)
    sample(predictor, guidance, LINEAR, BatchNoise((64, 2)), Sampler(50), [run])
    evaluated = 0
    for x_t, step, predictions, scale in zip(run.states, run.steps, run.predictions, run.scale, strict=False):
        active = RING.posterior(x_t, step.level, FORBIDDEN) >= 0.25
        assert torch.equal(predictions.active, active)
        assert torch.equal(scale, 1.5 * active.any(1))
        evaluated += int(active.sum())
    assert 0 < evaluated < 0.5 * 64 * 50 * 3
    assert predictor.nfe == 64 * 50 + evaluated


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_threshold_out_of_range_is_refused(bad):
    with pytest.raises(SettingError, match=r"threshold must be in .0, 1."):
        AdaptiveNegative(NegativePrompting(), threshold=bad)
