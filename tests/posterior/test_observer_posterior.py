"""A posterior by an observer: when it looks, what is active then, and where a tracked posterior starts from."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from by_hand import LINEAR, nth_step, update
from mixture import BatchNoise, GaussianMixture, Trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import AdaptiveNegative, DynamicNegativeGuidance, NegativePrompting
from dng_lightning.interfaces import Predictions
from dng_lightning.posterior import (
    CalibratedPosterior,
    ClassifierPosterior,
    ObserverPosterior,
    TrackedPosterior,
)
from dng_lightning.posterior.observer import Observed
from dng_lightning.sampling import ImageNoise, Predictor, Sampler, WithClassifier, WithObserver, sample

ANGLES = [2 * math.pi * k / 10 for k in range(10)]
RING = GaussianMixture(LINEAR, [[1.5 * math.cos(a), 1.5 * math.sin(a)] for a in ANGLES], 0.15)
FORBIDDEN = [0, 3, 6]
TRACKED = TrackedPosterior(0.1)
CALIBRATION = [[-3.0, 1.1, -1.0], [4.0, 1.5, 1.0]]
N = 2000


def drawn(guidance: DynamicNegativeGuidance, predictor: Predictor, steps: int = 50, count: int = N) -> Tensor:
    return sample(predictor, guidance, LINEAR, BatchNoise((count, 2)), Sampler(steps))


def leak(x_0: Tensor) -> float:
    return float(torch.isin(RING.nearest(x_0), torch.tensor(FORBIDDEN)).double().mean())


def observed() -> WithObserver:
    """The exact classifier of images looks at the denoised ones."""
    return WithObserver(RING.shared(FORBIDDEN), lambda denoised: RING.posterior(denoised, 0, FORBIDDEN))


class Exact(Predictor):
    """The mixture's predictions, with the exact p(c | x_t) in place of what an observer makes of D."""

    provides = frozenset({"observer"})

    def __init__(self) -> None:
        self.inner, self.conditions = RING.shared(FORBIDDEN), 3

    def predict(self, x_t, level, needs=None):
        return replace(self.inner.predict(x_t, level, needs), observed=RING.posterior(x_t, level, FORBIDDEN))


# --- when it looks ---


@pytest.mark.parametrize(
    ("observe_steps", "steps", "expected"),
    [
        ([0.0, 0.5], 10, [0, 5]),
        ([0.1, 0.12, 0.14, 0.18, 0.24, 0.32, 0.42, 0.54, 0.68, 0.84], 50, [5, 6, 7, 9, 12, 16, 21, 27, 34, 42]),
        (4, 50, [10, 20, 30, 40]),
        (1, 3, [2]),
        (20, 3, [0, 1, 2]),
        ([0.999], 50, []),
        ([0.5, 0], 10, [0, 5]),
    ],
)
def test_it_looks_at_the_scheduled_steps_whatever_their_number(observe_steps, steps: int, expected: list[int]):
    posterior = ObserverPosterior(TRACKED, observe_steps)
    state = posterior.start(torch.empty(2, 3), 3)
    found = [i for i in range(steps) if posterior.needs(state, nth_step(i, steps)).observer is not None]
    assert found == expected
    assert posterior.needs().observer == 1


def test_the_unconditional_prediction_is_asked_for_where_the_observer_is_shown_it():
    plain, sharp = (ObserverPosterior(observe_steps=[0.1], observer_cfg_scale=w) for w in (1.0, 7.5))
    state = plain.start(torch.empty(2, 3), 3)
    assert (plain.needs().null, sharp.needs().null) == (False, True)
    asked = [sharp.needs(state, nth_step(i)) for i in range(3)]
    assert [needs.null for needs in asked] == [False, True, False]
    assert [needs.observer for needs in asked] == [None, 7.5, None]
    assert not plain.needs(state, nth_step(1)).null


def test_the_observer_is_shown_the_denoised_base_prediction():
    x_t, level = BatchNoise((5, 2))(), LINEAR.level(400)
    shown: list[Tensor] = []

    def observer(denoised: Tensor) -> Tensor:
        shown.append(denoised)
        return torch.zeros(5, 3)

    guidance = DynamicNegativeGuidance(posterior=ObserverPosterior(TrackedPosterior(), observe_steps=[0.0]))
    state = guidance.start(x_t, 3)
    for clip in (None, 0.5):
        predictor = WithObserver(RING.shared(FORBIDDEN), observer, clip)
        given = predictor.predict(x_t, level, guidance.needs(state, nth_step(0)))
        mean = RING.denoised(x_t, level)
        torch.testing.assert_close(shown[-1], mean if clip is None else mean.clamp(-clip, clip))
        assert given.observed is not None
    WithObserver(RING.shared(FORBIDDEN), observer).predict(x_t, level, guidance.needs(state, nth_step(1)))
    assert len(shown) == 2  # not asked, not looked


def test_a_classifiers_posterior_and_an_observer_go_together():
    guidance = DynamicNegativeGuidance(posterior=ObserverPosterior(ClassifierPosterior(), observe_steps=49))
    predictor = RING.predictor(guidance, FORBIDDEN)
    assert predictor.provides == {"classifier", "observer"}
    assert leak(drawn(guidance, predictor, count=500)) < 0.06  # .30 unguided
    assert predictor.nfe < 1.7 * 50 * 500


# --- the removal ---


def test_as_little_is_left_as_when_all_conditions_are_evaluated_at_a_fraction_of_the_cost():
    every = leak(drawn(DynamicNegativeGuidance(posterior=TRACKED), RING.shared(FORBIDDEN)))
    assert every == pytest.approx(0.095, abs=0.02)  # 50 steps; of .30
    guidance, predictor = DynamicNegativeGuidance(posterior=ObserverPosterior(TRACKED)), observed()
    few = leak(drawn(guidance, predictor))
    assert few == pytest.approx(every, abs=0.025)  # standard error of the difference .009
    assert predictor.nfe / (50 * N) < 1.7  # in place of 4
    # told p(c | x_t) itself at every step, it knows better than 50 steps of tracking
    exact, each_step = Exact(), ObserverPosterior(observe_steps=[i / 50 for i in range(50)])
    assert leak(drawn(DynamicNegativeGuidance(posterior=each_step), exact)) == pytest.approx(0.045, abs=0.02)
    assert exact.inner.nfe / (50 * N) < 2.3


def test_a_posterior_that_is_not_told_comes_too_late():
    guidance = DynamicNegativeGuidance(posterior=ObserverPosterior(TRACKED, observer_weight=0.0))
    assert leak(drawn(guidance, observed())) > 0.2


@dataclass(frozen=True)
class AlwaysActive(ObserverPosterior):
    """All conditions, from the start."""

    def start(self, x_T: Tensor, conditions: int) -> Observed:
        state = super().start(x_T, conditions)
        return replace(state, active=torch.ones_like(state.active))


@pytest.mark.parametrize(
    ("scale", "posterior"),
    [
        (2.0, TrackedPosterior(0.2, offset=1e-3)),
        (2.0, TrackedPosterior([0.1, 0.5, 0.01], p_max=0.8, guidance_shift_weight=0.3)),
        (2.0, CalibratedPosterior(CALIBRATION)),
    ],
    ids=["tracked", "several priors", "calibrated"],
)
def test_with_all_conditions_active_it_is_the_posterior_inside_bit_for_bit(scale, posterior):
    expected = drawn(DynamicNegativeGuidance(scale, posterior), RING.shared(FORBIDDEN), count=64)
    always = DynamicNegativeGuidance(scale, AlwaysActive(posterior, threshold=0.0))
    assert torch.equal(drawn(always, observed(), count=64), expected)


def test_an_image_depends_on_its_seed_alone():
    guidance = DynamicNegativeGuidance(posterior=ObserverPosterior(TRACKED))

    def images(seeds: range) -> Tensor:
        return sample(observed(), guidance, LINEAR, ImageNoise(seeds, (2,)), Sampler(50))

    whole, parts = images(range(24)), [images(range(i, i + 8)) for i in (0, 8, 16)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-4)  # sums grouped differently
    assert torch.equal(images(range(24)), whole)


def test_without_one_inside_it_is_the_observers_own_probability_at_its_last_look():
    guidance, run = DynamicNegativeGuidance(posterior=ObserverPosterior(observe_steps=[0.2, 0.6])), Trajectory()
    sample(observed(), guidance, LINEAR, BatchNoise((64, 2)), Sampler(10), [run])
    assert not run.posterior[:3].any()  # 0 in fp32 before the first look
    for i in range(3, 10):
        p = run.predictions[2 if i <= 6 else 6].observed
        expected = torch.where(p >= 0.1, p, torch.zeros_like(p))
        excess = (expected.sum(1, keepdim=True) / 0.99).clamp(min=1)
        torch.testing.assert_close(run.posterior[i].double(), (expected / excess).double(), rtol=1e-5, atol=1e-7)


# --- errors ---


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"observe_steps": 0}, "observe_steps must be"),
        ({"observe_steps": []}, "observe_steps must be"),
        ({"observe_steps": [0.1, 1.0]}, "observe_steps must be"),
        ({"observe_steps": [-0.1]}, "observe_steps must be"),
        ({"observe_steps": [0.5, 2]}, "observe_steps must be"),
        ({"observe_steps": [-1, 2]}, "observe_steps must be"),
        ({"observer_cfg_scale": -1.0}, "observer_cfg_scale must be at least 0 and finite"),
        ({"threshold": 1.1}, "threshold must be in .0, 1."),
        ({"observer_weight": -0.1}, "observer_weight must be in .0, 1."),
        ({"observer_weight": math.nan}, "observer_weight must be in .0, 1."),
    ],
)
def test_settings_out_of_range_are_refused(setting, reason):
    with pytest.raises(SettingError, match=reason):
        ObserverPosterior(**setting)


@pytest.mark.parametrize(
    "guidance",
    [
        DynamicNegativeGuidance(posterior=ObserverPosterior(TRACKED, observe_steps=9)),
        AdaptiveNegative(NegativePrompting(), ObserverPosterior(observe_steps=9)),
    ],
)
def test_without_an_observer_one_line_says_so(guidance):
    with pytest.raises(SettingError, match=r"needs an observer: wrap the predictor in WithObserver"):
        drawn(guidance, WithClassifier(RING.shared(FORBIDDEN), RING.log_posterior, FORBIDDEN))
    given = Predictions(torch.zeros(1, 1), torch.zeros(1, 3, 1))
    with pytest.raises(SettingError, match="the predictions have no observed"):
        update(guidance, guidance.start(given.denoised, 3), nth_step(5), given.denoised, given.denoised, given)
