"""The calibrated posterior, on evidence whose meaning is known."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mixture import BatchNoise, GaussianMixture, ring, trajectory
from tracking import LINEAR, advance, any_step, start, step_between

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, Unguided
from dng_lightning.interfaces import Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.posterior import CalibratedPosterior, TrackedPosterior
from dng_lightning.posterior.base import at_most, odds
from dng_lightning.posterior.calibrated import LARGEST
from dng_lightning.posterior.calibration import slope_and_shift
from dng_lightning.sampling import PassiveTracking, Sampler, sample

FREE = 1e-100  # a prior so small that no evidence here reaches p_max: a tracked posterior without its bounds
ROWS = [[-4.0, 1.0, -2.0], [0.0, 1.5, -1.0], [2.0, 0.5, 3.0]]
FIVE = GaussianMixture(LINEAR, ring(1.5, 5, 2), 0.3)


def level_of(log_snr: float) -> NoiseLevel:
    """A level of a variance-preserving path."""
    share = 1 / (1 + math.exp(-log_snr))
    return NoiseLevel(math.sqrt(share), math.sqrt(1 - share), 0)


# --- the posterior ---


@pytest.mark.parametrize(
    ("log_snr", "slope", "shift"),
    [
        *[(2.0, 0.5, 3.0), (1.5, 0.75, 2.0), (0.0, 1.5, -1.0), (-2.0, 1.25, -1.5), (-4.0, 1.0, -2.0)],
        *[(20.0, 0.5, 3.0), (2.01, 0.5, 3.0), (-4.01, 1.0, -2.0), (-20.0, 1.0, -2.0)],
    ],
)
def test_slope_and_shift_are_linear_in_log_snr_between_the_rows_and_constant_beyond(log_snr, slope, shift):
    level = level_of(log_snr)
    assert slope_and_shift(ROWS, level) == pytest.approx((slope, shift), rel=1e-12)
    log_ratio = torch.tensor([[-3.0], [0.0], [0.7], [2.5]], dtype=torch.double)
    expected = 1 / (1 + (-(slope * log_ratio + shift)).exp())
    p = CalibratedPosterior(ROWS, p_max=1 - 1e-9).read(log_ratio, level).exp()
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=0)


def test_the_outermost_rows_hold_at_the_data_and_at_pure_noise():
    posterior = CalibratedPosterior(ROWS)
    assert slope_and_shift(posterior.calibration, NoiseLevel(1.0, 0.0, 0)) == (0.5, 3.0)
    assert slope_and_shift(posterior.calibration, NoiseLevel(0.0, 1.0, 1)) == (1.0, -2.0)


def test_one_row_holds_at_every_level():
    posterior = CalibratedPosterior([[0.3, 2.0, 1.0]])
    assert {slope_and_shift(posterior.calibration, LINEAR.level(t)) for t in (0, 1, 500, 1000)} == {(2.0, 1.0)}


def test_classes_that_sum_to_more_than_p_max_share_it_in_proportion():
    posterior = CalibratedPosterior([[0, 1, 0]], p_max=0.6)
    given = torch.tensor([[0.9, 0.3], [0.2, 0.3], [0.5, 0.1], [0.999, 0.999]], dtype=torch.double)
    p = posterior.read(given.logit(), LINEAR.level(10)).exp()
    expected = torch.tensor([[0.45, 0.15], [0.2, 0.3], [0.5, 0.1], [0.3, 0.3]], dtype=torch.double)
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=0)
    assert torch.equal(at_most(given[1:2].log(), 0.6), given[1:2].log())


def test_dynamic_guidance_pushes_by_the_odds_of_the_calibrated_posterior():
    step = step_between(level_of(1.0), level_of(1.1))
    _, _, predictions = any_step(step, 2)
    guidance = DynamicNegativeGuidance(2.0, CalibratedPosterior(ROWS, p_max=0.9))
    log_ratio = torch.tensor([[-1.0, -3.0]] * 6, dtype=torch.double)
    guided = guidance.guide(predictions, log_ratio, step)
    # at a log SNR of 1 the slope is 1 and the shift 1: logits 0 and -2
    p = torch.tensor([0.5, 1 / (1 + math.exp(2))])
    torch.testing.assert_close(guided.posterior, p.double().expand(6, 2))
    scales = 2 * p / (1 - p.sum())
    torch.testing.assert_close(guided.scale, scales.sum().expand(6))
    away = (scales.view(2, 1, 1, 1) * predictions.differences).sum(1)
    torch.testing.assert_close(guided.denoised, predictions.denoised - away, rtol=0, atol=2e-6)  # fp32 numbers up to 4


# --- the evidence ---


def test_the_evidence_is_that_of_the_tracked_posterior_without_bounds():
    plain = DynamicNegativeGuidance(0.0, TrackedPosterior(prior=FREE))
    run = trajectory(FIVE, plain, [0, 3], Sampler(50), BatchNoise((64, 2)))
    tracking = PassiveTracking([CalibratedPosterior(ROWS)])
    sample(FIVE.shared([0, 3]), Unguided(), LINEAR, BatchNoise((64, 2)), Sampler(50), [tracking])
    found = tracking.state(0).transpose(0, 1)
    assert found.abs().max() > 10
    kept = found > -450  # the other's posteriors are e^L of 1e-100, and fp64 ends at e^-708
    expected = run.posterior.log() - math.log(FREE)
    torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-9)  # of log p = -680


@pytest.mark.parametrize("weight", [1.0, 0.0], ids=["own push", "no own push"])
def test_a_calibration_by_the_theorys_own_rule_guides_as_the_tracked_posterior_does(weight):
    # where p is small, logit p = log p: slope 1 and shift log prior are the uncalibrated posterior
    tracked = TrackedPosterior(prior=1e-9, guidance_shift_weight=weight)
    calibrated = CalibratedPosterior([[0, 1.0, math.log(1e-9)]], guidance_shift_weight=weight)
    runs = [
        trajectory(FIVE, DynamicNegativeGuidance(1e8, posterior), [0, 3], Sampler(50), BatchNoise((64, 2)))
        for posterior in (tracked, calibrated)
    ]
    assert runs[0].scale.max() > 0.3
    # rounded to fp32 here and there
    torch.testing.assert_close(runs[1].scale, runs[0].scale, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(runs[1].x_0, runs[0].x_0, rtol=0, atol=1e-3)


def test_evidence_adds_up_from_nothing_and_none_is_taken_at_the_last_step():
    posterior, step = CalibratedPosterior(ROWS), step_between(500, 480)
    states = any_step(step, 2)
    first = start(posterior, 6, 2)
    assert torch.equal(first, torch.zeros(6, 2, dtype=torch.double))
    once = advance(posterior, first, step, *states)
    assert once.abs().min() > 0
    torch.testing.assert_close(advance(posterior, once, step, *states), 2 * once)
    plain = TrackedPosterior(FREE)
    log_p = start(plain, 6, 2)
    torch.testing.assert_close(once, advance(plain, log_p, step, *states) - log_p, rtol=0, atol=1e-9)
    last = step_between(1, 0)
    assert torch.equal(advance(posterior, once, last, *any_step(last, 2)), once)


numbers = st.floats(-1e12, 1e12)


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.tuples(numbers, numbers), min_size=5, max_size=5),
    st.floats(1e-9, 1 - 1e-9),
    st.lists(st.floats(-1e20, 1e20), min_size=4, max_size=4),
    st.integers(1, LINEAR.T).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, t - 1))),
)
@settings(max_examples=150, deadline=None)
@example([0], [(1.0, 0.0)] * 5, 0.99, [0.0, 1e20, 0.0, 1e20], (2, 1))
@example([-20, 20], [(1e12, -1e12), (-1e12, 1e12)] * 2 + [(0.0, 0.0)], 0.5, [1.0, -1e20, 0.0, 1.0], (1000, 1))
def test_posteriors_and_pushes_stay_within_their_bounds_at_any_evidence(log_snrs, lines, p_max, values, grid):
    rows = [[log_snr, *line] for log_snr, line in zip(log_snrs, lines, strict=False)]
    posterior, step = CalibratedPosterior(rows, p_max), step_between(*grid)
    x_t, x_s, base, negative = (torch.full((2, 3), value) for value in values)
    predictions = Predictions(base, torch.stack([negative, 2 * negative, base], 1))
    log_ratio = start(posterior, 2, 3)
    for _ in range(2):
        log_ratio = advance(posterior, log_ratio, step, x_t, x_s, predictions)
        assert log_ratio.abs().max() <= LARGEST
        assert (log_ratio[:, 2] == 0).all()  # the class that never differs
        for t in (0, grid[1], LINEAR.T):
            log_p = posterior.read(log_ratio, LINEAR.level(t))
            assert not log_p.isnan().any()
            assert log_p.exp().sum(1).max() <= p_max * (1 + 1e-12)  # fp64
            assert odds(log_p).min() >= 0
            # fp32; 1 - p_max is good to 1e-16 / 1e-9
            assert odds(log_p).sum(1).max() <= p_max / (1 - p_max) * (1 + 2e-6)


# --- settings ---


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "rows of three numbers"),
        ([[]], "rows of three numbers"),
        ([[0, 1]], "rows of three numbers"),
        ([[0, 1, 0], [10, 1, 0, 0]], "rows of three numbers"),
        ([[0, "1", 0]], "rows of three numbers"),
        ([[0, math.nan, 0]], "rows of three finite numbers"),
        ([[0, 1, math.inf]], "rows of three finite numbers"),
        ([[math.nan, 1, 0]], "rows of three finite numbers"),
        ([[10, 1, 0], [10, 1, 0]], "log SNR of a calibration must rise"),
        ([[10, 1, 0], [0, 1, 0]], "log SNR of a calibration must rise"),
        ("beside", "rows of numbers, checkpoint or null; got beside"),
    ],
)
def test_rows_that_are_no_calibration_are_refused(rows, reason):
    with pytest.raises(SettingError, match=reason):
        CalibratedPosterior(rows)


@pytest.mark.parametrize("p_max", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_p_max_that_bounds_nothing_is_refused(p_max):
    with pytest.raises(SettingError, match=r"p_max must be in \(0, 1\)"):
        CalibratedPosterior(ROWS, p_max)


def test_rows_that_are_still_in_the_checkpoints_folder_are_missed_before_any_network_is_called():
    predictor = FIVE.shared([0])
    with pytest.raises(SettingError, match="give rows, or"):
        sample(predictor, DynamicNegativeGuidance(posterior=CalibratedPosterior()), LINEAR, BatchNoise((1, 2)))
    assert predictor.nfe == 0
