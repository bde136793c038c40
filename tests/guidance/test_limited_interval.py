"""A guidance confined to some noise levels: where it acts, what it sees meanwhile, and what that costs."""

import math

import pytest
import torch
from dng_lightning.guidance.watching import Evidence
from dng_lightning.timing import Timing
from mixture import BatchNoise, GaussianMixture, Trajectory, trajectory

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    OracleNegativeGuidance,
    PositiveAndNegative,
    SafeLatentDiffusion,
    Unguided,
)
from dng_lightning.sampling import Sampler, sample
from dng_lightning.schedule import LinearSchedule, NoiseSchedule

LINEAR = LinearSchedule()
MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
FOUR = GaussianMixture(LINEAR, MEANS, [0.2, 0.3, 0.4, 0.5])
METHODS = [
    NegativePrompting(2.0),
    SafeLatentDiffusion(2.0),
    DynamicNegativeGuidance(2.0, prior=0.2, own_push=0.5),
    DynamicNegativeGuidance(2.0, prior=0.2, timing=Timing(0.5, 0.4)),
    OracleNegativeGuidance(2.0),
    AdaptiveProjectedGuidance(2.0),
    PositiveAndNegative(DynamicNegativeGuidance(2.0, prior=0.2), 2.0),
]


def run(guidance: Guidance, mixture: GaussianMixture = FOUR, steps: int = 40) -> Trajectory:
    wanted = 1 if guidance.needs.wanted else None
    return trajectory(mixture, guidance, [0], Sampler(steps), BatchNoise((64, 2)), wanted)


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_an_interval_of_all_levels_changes_nothing(guidance):
    within, alone = run(LimitedInterval(guidance)), run(guidance)
    assert torch.equal(within.x, alone.x)
    assert torch.equal(within.scale, alone.scale)
    assert torch.equal(within.posterior, alone.posterior)


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_an_interval_that_no_level_is_in_gives_the_base(guidance):
    within, neutral = run(LimitedInterval(guidance, 1e6)), 1.0 if guidance.neutral else 0.0
    plain = PositiveAndNegative(Unguided()) if guidance.needs.wanted else Unguided()
    assert torch.equal(within.x, run(plain).x)
    assert (within.scale == neutral).all()


def test_it_acts_at_the_noise_levels_above_low_up_to_high():
    low, high = (float(LINEAR.sigma[t] / LINEAR.alpha[t]) for t in (300, 600))
    within = run(LimitedInterval(NegativePrompting(2.0), low, high))
    acted = [t for t, scale in zip(within.levels, within.scale, strict=False) if (scale == 2).all()]
    idle = [t for t, scale in zip(within.levels, within.scale, strict=False) if (scale == 0).all()]
    assert acted == list(range(600, 300, -25))  # high is in, low is not
    assert idle == [*range(1000, 600, -25), *range(300, 0, -25)]


def test_an_interval_means_the_same_noise_on_any_path():
    ve = NoiseSchedule(torch.ones(1000), LINEAR.sigma[1:] / LINEAR.alpha[1:])
    guidance = LimitedInterval(NegativePrompting(2.0), 0.5, 4.0)
    here, there = run(guidance), run(guidance, GaussianMixture(ve, MEANS, [0.2, 0.3, 0.4, 0.5]))
    assert torch.equal(here.scale, there.scale)
    torch.testing.assert_close(here.x_0, there.x_0, rtol=0, atol=2e-3)  # fp32 states of up to 160 on the one


def test_outside_the_wanted_class_is_the_base_and_not_the_null():
    guidance = LimitedInterval(ClassifierFreeGuidance(4.0), 0.5, 2.0)
    x = run(guidance)
    predictor, t = FOUR.shared([0]), x.levels[0]
    step = LINEAR.transition(t, x.levels[1])
    wanted = predictor.predict(x.x[0], t, guidance.needs, torch.ones(64, dtype=torch.long)).base
    noise = BatchNoise((64, 2))
    noise()
    assert torch.equal(x.x[1], step.mean(x.x[0], wanted) + step.variance**0.5 * noise())


@pytest.mark.parametrize("own_push", [0.0, 0.4, 1.0])
def test_the_tracker_goes_on_observing_outside_where_there_is_no_push_of_its_own(own_push):
    dynamic = DynamicNegativeGuidance(3.0, prior=0.2, own_push=own_push)
    within, watching = run(LimitedInterval(dynamic, 1e6)), run(DynamicNegativeGuidance(0.0, prior=0.2))
    assert torch.equal(within.posterior, watching.posterior)
    assert within.posterior.std() > 0.1


def evaluations(guidance: Guidance) -> float:
    """Of the network, for an image."""
    predictor = FOUR.predictor(guidance, [0])
    wanted = torch.ones(8, dtype=torch.long) if guidance.needs.wanted else None
    sample(predictor, guidance, LINEAR, BatchNoise((8, 2)), Sampler(40), wanted)
    return predictor.evaluations / 8


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (NegativePrompting(), 40 + 12),
        (ClassifierFreeGuidance(), 40 + 12),
        (PositiveAndNegative(NegativePrompting(), 2.0), 40 + 2 * 12),
        (LimitedInterval(NegativePrompting(), 0.0, 1e6), 40 + 12),
        (SafeLatentDiffusion(), 80),
        (DynamicNegativeGuidance(), 80),
        (PositiveAndNegative(DynamicNegativeGuidance(), 2.0), 120),
        (AdaptiveProjectedGuidance(), 80),
        (OracleNegativeGuidance(), 80),  # to go on showing its posterior
        (Unguided(), 40),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_a_guidance_that_looks_on_has_its_evaluations_outside(guidance, expected):
    low, high = (float(LINEAR.sigma[t] / LINEAR.alpha[t]) for t in (300, 600))
    assert evaluations(LimitedInterval(guidance, low, high)) == expected


def test_a_guidance_says_whether_it_observes():
    observing = [SafeLatentDiffusion(), DynamicNegativeGuidance(), AdaptiveProjectedGuidance(), Evidence()]
    assert all(guidance.observes for guidance in observing)
    assert not any(guidance.observes for guidance in (Unguided(), NegativePrompting(), ClassifierFreeGuidance()))
    assert LimitedInterval(observing[0]).observes
    assert not LimitedInterval(NegativePrompting()).observes


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_an_interval_that_is_none_is_refused(low, high):
    with pytest.raises(SettingError, match="needs 0 <= low < high"):
        LimitedInterval(NegativePrompting(), low, high)
