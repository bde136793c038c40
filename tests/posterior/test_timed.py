"""Feedback Guidance's published temperatures and offsets from their two times, and the same for negative guidance."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tracking import LINEAR, advance, no_evidence, start, step_between

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, FeedbackGuidance, Guidance, LimitedInterval
from dng_lightning.interfaces import Step
from dng_lightning.kernel import Kernel
from dng_lightning.posterior import ObserverPosterior, TimedPosterior, TrackedPosterior
from dng_lightning.sampling.sampler import with_schedule
from dng_lightning.schedule import LinearSchedule, NoiseSchedule

PRIOR = 0.01


def edm(levels: int) -> NoiseSchedule:
    """Karras et al.'s grid from .002 to 80 with rho 7, as a variance exploding path."""
    roots = torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), levels, dtype=torch.double)
    return NoiseSchedule(torch.ones(levels), roots**7)


def p_at_scale(pi: float, scale: float) -> float:
    """The posterior at which Feedback Guidance has this scale lambda."""
    return PRIOR * (1 - pi) * scale / (scale - 1)


def feedback(pi: float, t0: float, t1: float, scale: float = 3.0) -> FeedbackGuidance:
    return FeedbackGuidance(pi, TimedPosterior(t0, t1, p_at_scale(pi, scale), prior=PRIOR, p_max=0.2))


@pytest.mark.parametrize(
    ("pi", "t0", "t1", "offset", "temperature"),
    [
        (0.999, 0.556, 0.429, -0.2288, 0.0173),
        (0.95, 0.5, 0.4, -0.0809, 0.0035),
        (0.85, 0.75, 0.5, -0.0932, 0.0253),
    ],
)
def test_feedback_guidance_has_the_published_temperature_and_offset_at_64_steps(pi, t0, t1, offset, temperature):
    posterior = with_schedule(feedback(pi, t0, t1), edm(64)).posterior
    assert isinstance(posterior, TrackedPosterior)
    assert posterior.offset == pytest.approx(offset, abs=5e-5)  # given to four decimals
    assert posterior.temperature == pytest.approx(temperature, abs=5e-5)


def test_the_offset_of_a_level_makes_theirs_of_a_step_and_the_temperature_stays():
    posterior = TimedPosterior(0.556, 0.429, p_at_scale(0.999, 3.0), prior=PRIOR, p_max=0.2)
    coarse, fine = (posterior.with_schedule(edm(levels)) for levels in (64, 6400))
    assert 100 * fine.offset == pytest.approx(coarse.offset, rel=1e-12)
    # of 64 steps each, but one of 100 levels from 6,400 ends at a sigma 8 % above that of one of 64
    assert fine.temperature == pytest.approx(coarse.temperature, rel=0.2)


def test_a_noise_level_is_the_same_in_any_units():
    ve, posterior = edm(1000), TimedPosterior(0.6, 0.4, math.exp(-3), prior=0.99)
    alpha = 1 / (1 + ve.sigma[1:] ** 2).sqrt()
    vp = NoiseSchedule(alpha, alpha * ve.sigma[1:])
    found, expected = posterior.with_schedule(vp), posterior.with_schedule(ve)
    assert found.offset == pytest.approx(expected.offset, rel=1e-9)
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-9)


def without_evidence(guidance: Guidance, steps: int, t0: float) -> float:
    """The scale at t0, if the two predictions never differ."""
    guidance = with_schedule(guidance, LINEAR)
    x_t, x_s, same = no_evidence()
    same = replace(same, null=x_t)
    state = guidance.start(x_t, 1)
    for index, (t, s) in enumerate(pairwise(LINEAR.levels(steps))):
        kernel = Kernel(t, s)
        step = Step(index, steps, kernel, kernel)
        guided = guidance.guide(same, state, step)
        if LINEAR.fraction(t) <= t0:
            return float(guided.scale)
        state = guidance.update(state, step, x_t, x_s, same, guided)
    raise AssertionError


@pytest.mark.parametrize("steps", [1000, 100, 20])
@pytest.mark.parametrize("scale", [3.0, 1.5])
def test_without_evidence_the_scale_is_the_one_of_p_0_at_t0_on_any_grid(steps, scale):
    assert without_evidence(feedback(0.9, 0.5, 0.4, scale), steps, 0.5) == pytest.approx(scale, rel=1e-6)
    posterior = TimedPosterior(0.5, 0.4, scale / (1 + scale), prior=0.05)
    dynamic = DynamicNegativeGuidance(posterior=posterior)
    assert without_evidence(dynamic, steps, 0.5) == pytest.approx(scale, rel=1e-6)


def test_the_default_p_0_has_odds_of_3():
    dynamic = DynamicNegativeGuidance(posterior=TimedPosterior(0.5, 0.4, prior=0.05))
    assert without_evidence(dynamic, 100, 0.5) == pytest.approx(3, rel=1e-6)


def test_at_t1_a_step_of_the_named_discrepancy_balances_the_offset():
    schedule = LinearSchedule(64)
    posterior = TimedPosterior(0.5, 0.25, 0.5, discrepancy=2.0, prior=0.5 * math.exp(-1.7)).with_schedule(schedule)
    assert posterior.offset == pytest.approx(1.7 / 32)
    end = step_between(17, 16, schedule=schedule).kernel  # to 16 of 64
    x_s = math.sqrt(2.0) * end.next_level.alpha  # this far from the one mean, and at the other
    assert posterior.temperature * x_s**2 / (2 * end.variance) == pytest.approx(posterior.offset, rel=1e-9)


def test_of_several_classes_the_likeliest_comes_to_p_0():
    posterior = TimedPosterior(0.5, 0.5, 0.5, prior=[0.02, 0.1]).with_schedule(LINEAR)
    assert posterior.offset == pytest.approx(math.log(0.5 / 0.1) / 500)


def test_a_posterior_inside_others_has_the_times_too():
    inner = TimedPosterior(0.5, 0.4, prior=0.2, p_min=0.1, p_max=0.9, guidance_shift_weight=0.3)
    expected = inner.with_schedule(LINEAR)
    rest = {"temperature": expected.temperature, "offset": expected.offset}
    assert expected == TrackedPosterior(0.2, p_min=0.1, p_max=0.9, guidance_shift_weight=0.3, **rest)
    for wrapped in (lambda p: p, ObserverPosterior):
        guidance = LimitedInterval(DynamicNegativeGuidance(posterior=wrapped(inner)), 0.5, 5.0)
        found = with_schedule(guidance, LINEAR)
        assert found == LimitedInterval(DynamicNegativeGuidance(posterior=wrapped(expected)), 0.5, 5.0)


def test_times_without_noise_levels_are_not_passed_over():
    posterior = TimedPosterior(0.5, 0.4)
    with pytest.raises(SettingError, match="TimedPosterior needs the noise levels"):
        advance(posterior, start(posterior, 1, 1), step_between(9, 8), *no_evidence())


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"t0": 1.0}, r"t0 must be in \[0, 1\)"),
        ({"t1": 1.1}, r"t1 must be in \[0, 1\]"),
        ({"t1": math.nan}, "t1 must be in"),
        ({"p_0": 0.0}, "p_0 must be in"),
        ({"p_0": 1.0}, "p_0 must be in"),
        ({"guidance_shift_weight": 2.0}, "guidance_shift_weight must be in"),
        ({"prior": 0.0}, "prior must be inside"),
        ({"discrepancy": math.inf}, r"discrepancy must be in \(0, inf\)"),
    ],
)
def test_times_out_of_range_are_refused(setting, reason):
    with pytest.raises(SettingError, match=reason):
        TimedPosterior(**({"t0": 0.5, "t1": 0.5} | setting))
