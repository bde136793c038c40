"""A guidance confined to some noise levels: where it acts, what it sees meanwhile, and what that costs."""

import math
from dataclasses import replace

import pytest
import torch
from by_hand import FOUR, LINEAR, MEANS
from mixture import BatchNoise, GaussianMixture, Trajectory, near, trajectory

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    PositiveAndNegative,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    Unguided,
)
from dng_lightning.posterior import CalibratedPosterior, ClassifierPosterior, TimedPosterior, TrackedPosterior
from dng_lightning.sampling import Sampler, sample
from dng_lightning.schedule import NoiseSchedule, RectifiedFlowSchedule

TRACKED = TrackedPosterior(0.2)
METHODS = [
    NegativePrompting(2.0),
    SafeLatentDiffusion(2.0),
    DynamicNegativeGuidance(2.0, TrackedPosterior(0.2, guidance_shift_weight=0.5)),
    DynamicNegativeGuidance(2.0, TimedPosterior(0.5, 0.4, prior=0.2)),
    DynamicNegativeGuidance(2.0, ClassifierPosterior()),
    AdaptiveProjectedGuidance(2.0),
    PositiveAndNegative(DynamicNegativeGuidance(2.0, TRACKED), 2.0),
]


def run(guidance: Guidance, mixture: GaussianMixture = FOUR, steps: int = 40) -> Trajectory:
    label = 1 if guidance.needs().class_labels else None
    return trajectory(mixture, guidance, [0], Sampler(steps), BatchNoise((64, 2)), label)


def noise_levels(*numbers: int) -> list[float]:
    """sigma / alpha of levels of the linear schedule."""
    return [float(LINEAR.sigma[t] / LINEAR.alpha[t]) for t in numbers]


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_an_interval_of_all_levels_changes_nothing(guidance):
    within, alone = run(LimitedInterval(guidance)), run(guidance)
    assert torch.equal(within.x, alone.x)
    assert torch.equal(within.scale, alone.scale)
    assert torch.equal(within.posterior, alone.posterior)


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_an_interval_that_no_level_is_in_gives_the_base(guidance):
    within, neutral = run(LimitedInterval(guidance, 1e6)), guidance.identity_scale
    plain = PositiveAndNegative(Unguided()) if guidance.needs().class_labels else Unguided()
    assert torch.equal(within.x, run(plain).x)
    assert (within.scale == neutral).all()


def test_it_acts_at_the_noise_levels_above_low_up_to_high():
    low, high = noise_levels(300, 600)
    within = run(LimitedInterval(NegativePrompting(2.0), low, high))
    numbers = [level.timestep + 1 for level in within.levels]
    acted = [t for t, scale in zip(numbers, within.scale, strict=False) if (scale == 2).all()]
    idle = [t for t, scale in zip(numbers, within.scale, strict=False) if (scale == 0).all()]
    assert acted == list(range(600, 300, -25))  # high is in, low is not
    assert idle == [*range(1000, 600, -25), *range(300, 0, -25)]


def test_an_interval_means_the_same_noise_on_any_path():
    ve = NoiseSchedule(torch.ones(1000), LINEAR.sigma[1:] / LINEAR.alpha[1:])
    guidance = LimitedInterval(NegativePrompting(2.0), 0.5, 4.0)
    here, there = run(guidance), run(guidance, GaussianMixture(ve, MEANS, [0.2, 0.3, 0.4, 0.5]))
    assert torch.equal(here.scale, there.scale)
    torch.testing.assert_close(here.x_0, there.x_0, rtol=0, atol=2e-3)  # fp32 states of up to 160 on the one


def test_it_begins_where_a_flow_starts():
    flow = GaussianMixture(RectifiedFlowSchedule(), MEANS, [0.2, 0.3, 0.4, 0.5])
    scale = run(LimitedInterval(NegativePrompting(2.0), 0.5), flow).scale[:, 0]
    assert scale[0] == 2
    assert scale[-1] == 0
    assert run(LimitedInterval(NegativePrompting(2.0), 0.0, 4.0), flow).scale[0, 0] == 0


@pytest.mark.parametrize("method", [SafetyGuidedFlow, SafeDenoiser])
def test_it_confines_guidance_by_references(method):
    settings = {"gamma": 0.5} if method is SafetyGuidedFlow else {"bandwidth": 1.0, "threshold": 0.0}
    low, high = noise_levels(450, 850)
    scale = run(LimitedInterval(near(method, torch.zeros(1, 2) + 0.5, **settings), low, high), steps=10).scale
    # ten steps: they start from 1000, 900, ..., 100
    assert [bool(each.all()) for each in scale] == [2 <= i <= 5 for i in range(10)]


def test_outside_the_prediction_of_the_class_is_the_base_and_not_the_null():
    guidance = LimitedInterval(ClassifierFreeGuidance(4.0), 0.5, 2.0)
    x = run(guidance)
    predictor, kernel = FOUR.shared([0], torch.ones(64, dtype=torch.long)), x.steps[0].kernel
    denoised = predictor.predict(x.x[0], kernel.level, guidance.needs()).denoised
    noise = BatchNoise((64, 2))
    noise()
    assert torch.equal(x.x[1], kernel.mean(x.x[0], denoised) + kernel.std * noise())


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_posterior_is_tracked_outside_as_well_where_there_is_no_push(weight):
    dynamic = DynamicNegativeGuidance(3.0, TrackedPosterior(0.2, guidance_shift_weight=weight))
    within, watching = run(LimitedInterval(dynamic, 1e6)), run(DynamicNegativeGuidance(0.0, TRACKED))
    assert torch.equal(within.posterior, watching.posterior)
    assert within.posterior.std() > 0.1


def nfe(guidance: Guidance) -> float:
    """Evaluations of the network, for an image."""
    labels = torch.ones(8, dtype=torch.long) if guidance.needs().class_labels else None
    predictor = FOUR.predictor(guidance, [0], labels)
    sample(predictor, guidance, LINEAR, BatchNoise((8, 2)), Sampler(40))
    return predictor.nfe / 8


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (NegativePrompting(), 40 + 12),
        (ClassifierFreeGuidance(), 40 + 12),
        (PositiveAndNegative(NegativePrompting(), 2.0), 40 + 2 * 12),
        (LimitedInterval(NegativePrompting(), 0.0, 1e6), 40 + 12),
        (SafeLatentDiffusion(), 80),
        (DynamicNegativeGuidance(), 80),
        (DynamicNegativeGuidance(posterior=CalibratedPosterior([[0, 1.0, 0.0]])), 80),
        (LimitedInterval(DynamicNegativeGuidance(), 0.0, 1e6), 80),
        (PositiveAndNegative(DynamicNegativeGuidance(), 2.0), 120),
        (AdaptiveProjectedGuidance(), 80),
        (DynamicNegativeGuidance(posterior=ClassifierPosterior()), 40 + 12),
        (Unguided(), 40),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_a_guidance_that_is_updated_has_its_evaluations_outside(guidance, expected):
    assert nfe(LimitedInterval(guidance, *noise_levels(300, 600))) == expected


def test_the_posterior_of_a_classifier_is_recorded_outside_as_well():
    guidance = DynamicNegativeGuidance(posterior=ClassifierPosterior())
    outside, watching = run(LimitedInterval(guidance, 1e6)), run(replace(guidance, scale=0.0))
    assert torch.equal(outside.posterior, watching.posterior)
    assert outside.posterior.std() > 0.1


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_an_interval_that_is_none_is_refused(low, high):
    with pytest.raises(SettingError, match="needs 0 <= low < high"):
        LimitedInterval(NegativePrompting(), low, high)
