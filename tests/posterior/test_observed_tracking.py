"""What a posterior that is tracked makes of an observer: which conditions count, and where they start from."""

import math

import pytest
import torch
from by_hand import LINEAR, nth_step, update

from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.interfaces import Predictions
from dng_lightning.posterior import CalibratedPosterior, ObserverPosterior, TrackedPosterior

CALIBRATION = [[-3.0, 1.1, -1.0], [4.0, 1.5, 1.0]]


def test_what_is_not_active_is_neither_pushed_from_nor_tracked_nor_in_the_odds():
    base = torch.zeros(2, 1)
    negatives = torch.tensor([[[1.0], [2.0]], [[1.0], [2.0]]])
    given, step = Predictions(base, negatives, active=torch.tensor([[True, False], [True, True]])), nth_step(5)
    for posterior in (
        TrackedPosterior(0.25, offset=1e-3),
        CalibratedPosterior([[0, 1.0, math.log(1 / 3)]], guidance_shift_weight=1.0),
    ):
        guidance = DynamicNegativeGuidance(posterior=posterior)
        state = guidance.start(base, 2)
        guided = guidance.guide(given, state, step)
        assert guided.posterior is not None
        torch.testing.assert_close(guided.posterior, torch.tensor([[0.25, 0.0], [0.25, 0.25]]).double())
        torch.testing.assert_close(guided.scale, torch.tensor([1 / 3, 1.0]))  # .25 / .75; twice .25 / .5
        torch.testing.assert_close(guided.denoised, torch.tensor([[-1 / 3], [-0.5 - 1.0]]))
        after = update(guidance, state, step, base, base - 1, given)
        assert after[0, 1] == state[0, 1]
        assert ((after != state) == given.active).all()


def test_a_tracked_posterior_starts_from_what_the_observer_says_if_that_is_more():
    tracked, level = TrackedPosterior([0.1, 0.3], p_max=0.9), LINEAR.level(500)
    log_p = torch.tensor([[0.1, 0.3]]).double().log().repeat(5, 1)
    p = torch.tensor([[0.0, 0.0], [0.4, 0.0], [0.05, 0.0], [0.4, 0.2], [1.0, 0.0]]).double()
    none = torch.zeros(5, 2, dtype=torch.bool)
    told = tracked.at_least(log_p, p, level, none).exp()
    expected = [[0.1, 0.3], [0.4, 0.3], [0.1, 0.3], [0.4, 0.3], [0.9, 0.3]]  # .3 of the last is not active
    torch.testing.assert_close(told, torch.tensor(expected).double())
    both = tracked.at_least(log_p, p, level, ~none).exp()
    torch.testing.assert_close(both[4], torch.tensor([0.9 / 1.3, 0.9 * 0.3 / 1.3]).double())
    torch.testing.assert_close(both[:4], told[:4])
    assert torch.equal(tracked.at_least(log_p, 0 * p, level, none), log_p)


def test_so_does_a_calibrated_one():
    calibrated = CalibratedPosterior(CALIBRATION)
    evidence = torch.tensor([[-3.0, -2.5]]).double().repeat(5, 1)
    p = torch.tensor([[0.0, 0.0], [0.4, 0.0], [0.05, 0.0], [0.4, 0.2], [1.0, 0.0]]).double()
    none = torch.zeros(5, 2, dtype=torch.bool)
    for t in (50, 500):
        level = LINEAR.level(t)
        before = calibrated.read(evidence, level).exp()
        after = calibrated.read(calibrated.at_least(evidence, p, level, none), level).exp()
        torch.testing.assert_close(after[:4], before.maximum(p)[:4])
        assert after[4].sum() == pytest.approx(0.99)
    assert torch.equal(calibrated.at_least(evidence, 0 * p, level, none), evidence)
    flat = CalibratedPosterior([[0, 0.0, 1.0]])
    assert torch.equal(flat.at_least(evidence, p, level, none), evidence)


def looks(guidance: DynamicNegativeGuidance, says: list[list[float]]) -> list[tuple[list[bool], list[float]]]:
    """What is active after each look at one image whose predictions are all 0, and the posterior inside."""
    base = torch.zeros(1, 1)
    state, found = guidance.start(base, 2), []
    for index, p in enumerate(says, start=1):
        given = Predictions(base, base.expand(1, 2, 1), active=state.active, observed=torch.tensor([p]))
        state = update(guidance, state, nth_step(index), base, base, given)
        found.append((state.active.tolist()[0], state.inner.exp().tolist()[0]))
    return found


def test_the_observer_is_heard_once_when_a_condition_becomes_active():
    posterior = ObserverPosterior(TrackedPosterior(0.1, temperature=0.0), observe_steps=9, observer_weight=0.5)
    found = looks(DynamicNegativeGuidance(posterior=posterior), [[0.0, 0.6], [0.0, 0.8], [0.3, 0.8], [0.0, 0.05]])
    assert [(active, [round(p, 6) for p in inner]) for active, inner in found] == [
        ([False, True], [0.1, 0.3]),
        ([False, True], [0.1, 0.3]),
        ([True, True], [0.15, 0.3]),
        ([False, False], [0.15, 0.3]),
    ]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_conditions_that_become_active_together_stay_below_p_max(weight: float):
    tracked = TrackedPosterior(0.45, offset=0.1, p_max=0.95)
    guidance = DynamicNegativeGuidance(posterior=ObserverPosterior(tracked, observe_steps=9, observer_weight=weight))
    for active, inner in looks(guidance, [[0.6, 0.0], [0.6, 0.0], [0.0, 0.6], [0.6, 0.6], [0.6, 0.6]]):
        assert sum(p for p, counts in zip(inner, active, strict=True) if counts) <= 0.95 + 1e-6
