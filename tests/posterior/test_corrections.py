"""Temperature, offset, priors and bounds of the tracked posteriors, and the odds that follow."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tracking import FREE, LINEAR, advance, any_step, no_evidence, start, step_between

from dng_lightning.errors import SettingError
from dng_lightning.kernel import NoiseLevel, Variance
from dng_lightning.posterior import Posterior, ReleasedPosterior, TrackedPosterior
from dng_lightning.posterior.base import odds


def test_the_temperature_multiplies_the_evidence():
    step = step_between(500, 480)
    states = any_step(step, 2)
    log_p = start(TrackedPosterior(FREE), 6, 2)
    moved = [advance(TrackedPosterior(FREE, tau), log_p, step, *states) - log_p for tau in (0.0, 0.2, 1.0)]
    assert torch.equal(moved[0], torch.zeros_like(moved[0]))
    torch.testing.assert_close(moved[1], 0.2 * moved[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["beta_tilde", "beta"])
@pytest.mark.parametrize(("t", "s"), [(50, 49), (500, 480)])
def test_the_offset_counts_in_nats_or_by_the_variance_of_the_kernel(kind, t, s):
    step, span = step_between(t, s, kind), t - s
    states = any_step(step)
    outside = TrackedPosterior(1e-3, temperature=0.0, offset=3e-4)
    inside = replace(outside, offset_inside=True)
    released = ReleasedPosterior(1e-3, temperature=0.0, offset=3e-4, p_min=0.0)
    log_p = start(outside, 6, 1)
    for posterior, expected in (
        (outside, span * 3e-4),
        (inside, span**2 * 3e-4 / (2 * step.kernel.variance)),
        (released, span**2 * 3e-4 / (2 * step.kernel.beta_tilde)),
    ):
        moved = advance(posterior, log_p, step, *states) - log_p
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=0, atol=1e-13)  # of log p = -7


def gathered_offset(posterior: Posterior, levels: list[NoiseLevel], kind: Variance = "beta_tilde") -> float:
    """What the offset alone adds to log p on the way down ``levels``."""
    log_p = first = start(posterior, 1, 1)
    for t, s in pairwise(levels):
        log_p = advance(posterior, log_p, step_between(t, s, kind), *no_evidence())
    return float(log_p - first)


def down_to_100(steps: int) -> list[NoiseLevel]:
    """The levels of a grid of so many steps, down to level 100, which the networks are told as 99."""
    return [level for level in LINEAR.levels(steps) if level.timestep >= 99]


@pytest.mark.parametrize(("t", "nats"), [(500, 3.5), (200, 8.0), (100, 11.4), (50, 14.8), (20, 19.0), (1, 29.0)])
def test_the_offset_of_the_authors_gathers_the_known_bias(t, nats):
    # CIFAR-10's 2e-4 inside 1 / (2 beta_tilde), from the noisiest level down to their time t (our level t + 1)
    posterior = ReleasedPosterior(1e-20, temperature=0.0, p_min=0.0, p_max=0.99)
    gathered = gathered_offset(posterior, [LINEAR.level(i) for i in range(1000, t - 1, -1)], "beta")
    assert gathered == pytest.approx(nats, abs=0.06 if nats < 20 else 0.6)  # given to one decimal, the last to none


@pytest.mark.parametrize("steps", [1000, 250, 100, 50, 10])
def test_the_offset_in_nats_gathers_the_same_on_any_grid(steps):
    assert gathered_offset(TrackedPosterior(1e-20, 0.0, 0.01), down_to_100(steps)) == pytest.approx(9, rel=1e-12)


@pytest.mark.parametrize(("steps", "more"), [(250, 0.03), (100, 0.09), (50, 0.20)])
def test_the_offset_by_the_variance_gathers_about_the_same_on_grids_that_are_not_too_coarse(steps, more):
    posterior = TrackedPosterior(1e-20, 0.0, 2e-4, offset_inside=True)
    fine, coarse = (gathered_offset(posterior, down_to_100(n)) for n in (1000, steps))
    # n levels have somewhat less than n times the variance of one, and the less the closer to the data
    assert fine < coarse < (1 + more) * fine


# --- bounds ---


def test_p_min_and_p_max_hold_the_posterior():
    step = step_between(500, 480)
    states = any_step(step)
    posterior = TrackedPosterior(0.1, p_min=1e-3, p_max=0.8)
    up, down = (replace(posterior, offset=offset) for offset in (100.0, -100.0))
    log_p = start(posterior, 6, 1)
    torch.testing.assert_close(advance(up, log_p, step, *states).exp(), torch.full_like(log_p, 0.8))
    torch.testing.assert_close(advance(down, log_p, step, *states).exp(), torch.full_like(log_p, 1e-3))


def test_without_p_min_a_posterior_falls_as_far_as_the_evidence_says_and_comes_back():
    step = step_between(500, 499)
    states = any_step(step)
    posterior = TrackedPosterior(0.1, temperature=0.0)
    log_p = start(posterior, 6, 1)
    fallen = advance(replace(posterior, offset=-2000.0), log_p, step, *states)
    risen = advance(replace(posterior, offset=2000.0), fallen, step, *states)
    torch.testing.assert_close(fallen, log_p - 2000)
    torch.testing.assert_close(risen, log_p, rtol=0, atol=1e-10)


@pytest.mark.parametrize("p_min", [0.0, 1e-3, 0.05])
@pytest.mark.parametrize("offsets", [[5.0, 3.0, -9.0], [800.0, 3.0, -800.0], [1e9, 1e9, 0.0], [-5.0, -1.0, -1e9]])
def test_of_several_classes_each_stays_above_p_min_and_their_sum_below_p_max(p_min, offsets):
    posterior = TrackedPosterior([0.1, 0.2, 0.3], p_min=p_min, p_max=0.9)
    log_p = start(posterior, 1, 3) + torch.tensor([offsets], dtype=torch.double)
    p = advance(posterior, log_p, step_between(500, 480), *no_evidence(3)).exp()
    assert p.isfinite().all()
    assert p.min() >= p_min * (1 - 1e-12)
    assert p.sum() <= 0.9 * (1 + 1e-12)


def test_classes_at_p_max_keep_their_proportions():
    posterior = TrackedPosterior([0.1, 0.2, 0.3], offset=4.0, p_max=0.9)
    p = advance(posterior, start(posterior, 1, 3), step_between(9, 8), *no_evidence(3)).exp()
    torch.testing.assert_close(p, torch.tensor([[0.15, 0.3, 0.45]], dtype=torch.double))


@pytest.mark.parametrize("p_max", [0.99, 1 - 1e-9])
@pytest.mark.parametrize("evidence", [1e1, 1e4, 1e12, 1e300])
def test_p_max_is_kept_however_strong_the_evidence(p_max, evidence):
    # log p less its excess over log p_max would be 0 as soon as log p is so large that adding log p_max changes nothing
    posterior = TrackedPosterior(0.1, offset=evidence, p_max=p_max)
    log_p = advance(posterior, start(posterior, 1, 1), step_between(9, 8), *no_evidence())
    # 1 - p_max comes from 1 - (1 - 1e-9), which is good to 1e-16 / 1e-9
    assert float(odds(log_p)) == pytest.approx(p_max / (1 - p_max), rel=1e-6)


# --- odds ---


def test_the_odds_are_those_of_the_class_against_what_is_allowed():
    p = torch.tensor([[0.1, 0.2], [1e-12, 0.5], [0.0, 0.9]], dtype=torch.double)
    expected = (p / (1 - p.sum(1, keepdim=True))).float()
    torch.testing.assert_close(odds(p.log()), expected)
    assert odds(p.log()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_odds_stay_finite_and_positive_where_rounding_leaves_nothing_of_the_rest(dtype):
    log_p = torch.tensor([[math.log(0.5), math.log(0.5)], [0.0, -50.0], [1e-8, -1e4]], dtype=dtype)
    assert odds(log_p).isfinite().all()
    assert (odds(log_p) >= 0).all()


# --- settings ---


@pytest.mark.parametrize("kind", [TrackedPosterior, ReleasedPosterior])
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"prior": 0.0}, "prior must be inside"),
        ({"prior": 1.0}, "prior must be inside"),
        ({"prior": float("nan")}, "prior must be inside"),
        ({"prior": []}, "prior must be inside"),
        ({"prior": [0.1, -0.1]}, "prior must be inside"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"temperature": float("inf")}, "temperature must be at least 0"),
        ({"offset": float("nan")}, "offset must be finite"),
        ({"p_max": 0.005}, "p_max must be at least the prior"),
        ({"p_max": 1.0}, "p_max must be .* below 1"),
        ({"p_max": float("nan")}, "p_max must be"),
        ({"p_min": -1e-3}, "p_min must be between 0 and the prior"),
        ({"p_min": 0.2}, "p_min must be between 0 and the prior"),
        ({"p_min": float("nan")}, "p_min must be"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(kind, setting, reason):
    with pytest.raises(SettingError, match=reason):
        kind(**setting)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"reference": "most"}, "reference must be unconditional or complement; got most"),
        ({"divergence": -1}, "divergence must be at least 0"),
    ],
)
def test_a_setting_of_the_tracked_posterior_alone_is_refused_out_of_its_range(setting, reason):
    with pytest.raises(SettingError, match=reason):
        TrackedPosterior(**setting)


def test_priors_that_do_not_fit_the_forbidden_classes_are_refused():
    with pytest.raises(SettingError, match="one number or one for each of the 3"):
        start(TrackedPosterior([0.1, 0.2]), 4, 3)
    with pytest.raises(SettingError, match=r"sum to 1\.2, above p_max 0\.99"):
        start(TrackedPosterior(0.4), 4, 3)


@pytest.mark.parametrize(("prior", "classes"), [(0.1, 1), (0.1, 3), ([0.1, 0.2, 0.3], 3), (1e-12, 2)])
def test_every_image_starts_at_the_priors(prior, classes):
    log_p = start(TrackedPosterior(prior), 5, classes)
    expected = torch.tensor(prior, dtype=torch.double).expand(5, classes)
    assert log_p.shape == (5, classes)
    torch.testing.assert_close(log_p.exp(), expected, rtol=1e-14, atol=0)
