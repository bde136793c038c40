"""Feedback Guidance on a mixture where its assumption holds exactly, and its reductions to classifier-free guidance."""

import math
from itertools import pairwise

import pytest
import torch
from dng_lightning.predictors import ClassConditionalPredictor
from mixture import BatchNoise, GaussianMixture, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierFreeGuidance, FeedbackGuidance, Guidance, Predictions, Step, Unguided
from dng_lightning.posterior import PosteriorTracker
from dng_lightning.sampling import Sampler, sample
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
MEANS = [[-1.5, 0.0], [1.5, 0.0]]
WHOLE = GaussianMixture(LINEAR, MEANS, 0.3)
PI = 0.6
LEARNED = GaussianMixture(LINEAR, MEANS, 0.3, [(1 - PI) / 2, (1 - PI) / 2 + PI])  # of class 1, diluted by the whole


def model(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """A network whose class 1 is diluted as Feedback Guidance assumes; label 0 is the null class."""
    assert labels is not None
    return torch.where((labels == 0).unsqueeze(1), WHOLE.eps(x_t, t), LEARNED.eps(x_t, t))


def images(guidance: Guidance, count: int = 2048, steps: int = 200) -> Tensor:
    predictor, wanted = ClassConditionalPredictor(model, 0, []), torch.ones(count, dtype=torch.long)
    return sample(predictor, guidance, LINEAR, BatchNoise((count, 2)), Sampler(steps), wanted)


def diluted(x_0: Tensor) -> float:
    return float((x_0[:, 0] < 0).double().mean())


def log_ratio(x_t: Tensor, level: int) -> Tensor:
    """The exact log p_learned(x_t | c) / p(x_t), (B, 1)."""
    t = torch.full((len(x_t),), level)
    return (LEARNED.log_joint(x_t, t).logsumexp(1) - WHOLE.log_joint(x_t, t).logsumexp(1)).unsqueeze(1)


def step_at(t: int, s: int) -> Step:
    return Step(0, 1, t, s, LINEAR.transition(t, s))


@pytest.mark.parametrize("level", [900, 400, 100])
def test_with_the_exact_ratio_it_is_the_true_conditional_prediction(level):
    x_t, t = 1.5 * BatchNoise((256, 2), dtype=torch.double)(), torch.full((256,), level)
    given = Predictions(LEARNED.eps(x_t, t), x_t.unsqueeze(1), null=WHOLE.eps(x_t, t))
    guided = FeedbackGuidance(PI, max_scale=1e9).guide(given, log_ratio(x_t, level), step_at(level, level - 1))
    near = (guided.scale > 0) & (guided.scale < 1e6)  # beyond it, 1 - (1 - pi) / R has no digits left
    assert near.sum() > 100
    true = WHOLE.eps(x_t, t, torch.ones_like(t))
    torch.testing.assert_close(guided.eps[near], true[near], rtol=0, atol=1e-6)


def test_the_diluted_model_is_made_pure():
    before, after = images(Unguided()), images(FeedbackGuidance(PI, max_scale=100.0))
    assert diluted(before) == pytest.approx((1 - PI) / 2, abs=0.03)  # 3 sigma
    # what tracking misses at 200 steps, as for Dynamic Negative Guidance: .02 to .05 at 1,000 and 50
    assert diluted(after) < 0.04
    kept = after[after[:, 0] > 0]
    torch.testing.assert_close(kept.mean(0), torch.tensor([1.5, 0.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(kept.std(0), torch.tensor([0.3, 0.3]), rtol=0, atol=0.05)


def test_the_tracked_ratio_is_the_posteriors_own_update():
    guidance, tracker = FeedbackGuidance(PI, 0.7, -0.01, cap=1e3), PosteriorTracker(1e-300, 0.7, -0.01)
    x_t, x_s, base, null = (BatchNoise((6, 2), seed, torch.double)() for seed in range(4))
    step = step_at(500, 480)
    log_p = tracker.start(6, 1, torch.device("cpu"))
    moved = tracker.update(log_p, step.transition, x_t, x_s, null, base.unsqueeze(1)) - log_p
    state = guidance.observe(guidance.start(x_t, 1), step, x_t, x_s, Predictions(base, base, null=null))
    least = math.log((1 - PI) * 10 / 9)
    torch.testing.assert_close(state, moved.clamp(min=least), rtol=0, atol=1e-9)  # of log p = -690
    assert (moved > least).any()


def error_of_the_ratio(steps: int) -> float:
    """Mean |tracked R - exact R| before the last step of unguided images of class 1."""
    x, wanted = [], torch.ones(1024, dtype=torch.long)
    predictor, noise = ClassConditionalPredictor(model, 0, []), BatchNoise((1024, 2))
    sample(predictor, Unguided(), LINEAR, noise, Sampler(steps), wanted, lambda step, guided, x_s: x.append(x_s))
    guidance, levels = FeedbackGuidance(PI, max_scale=1e9, cap=1e3), LINEAR.levels(steps)[1:-1]
    state = guidance.start(x[0], 0)
    for index, (t, s) in enumerate(pairwise(levels)):
        given = predictor.predict(x[index], t, guidance.needs, wanted)
        state = guidance.observe(state, step_at(t, s), x[index], x[index + 1], given)
    return float((state.exp() - log_ratio(x[len(levels) - 1], levels[-1]).exp()).abs().mean())


def test_the_tracked_ratio_follows_the_exact_one():
    coarse, fine = (error_of_the_ratio(steps) for steps in (50, 1000))
    # R is 1.6 or .4, about twice a posterior, whose tracker errs by .017 at 1,000 steps
    assert fine < 0.045
    assert coarse / fine == pytest.approx(20**0.5, rel=0.3)  # strong order one half, as the posterior's


def test_pi_1_is_the_learned_conditional_bit_for_bit():
    assert torch.equal(images(FeedbackGuidance(1.0), 64, 50), images(Unguided(), 64, 50))


@pytest.mark.parametrize("pi", [0.125, 0.3, 0.5, 0.8])
def test_a_ratio_that_is_held_fixed_is_classifier_free_guidance(pi):
    # R = 1 and lambda = 1 / pi
    held, constant = FeedbackGuidance(pi, temperature=0.0), ClassifierFreeGuidance(1 / pi)
    torch.testing.assert_close(images(held, 64, 50), images(constant, 64, 50), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_with_pi_1_its_hybrid_is_classifier_free_guidance_bit_for_bit(scale):
    assert torch.equal(
        images(FeedbackGuidance(1.0, scale=scale), 64, 50), images(ClassifierFreeGuidance(scale), 64, 50)
    )


def test_the_scale_is_the_formula_and_the_hybrid_adds_to_it_in_its_interval():
    log_r = torch.tensor([[-0.5], [0.0], [1.0], [3.0]], dtype=torch.double)
    x = torch.zeros(4, 2)
    given = Predictions(x, x.unsqueeze(1), null=x)
    hybrid = FeedbackGuidance(0.7, scale=2.6, low=0.48, high=6.84)
    for t in (900, 600, 300, 100):
        r, noise = log_r[:, 0].exp(), float(LINEAR.sigma[t] / LINEAR.alpha[t])
        expected = r / (r - 0.3) + (1.6 if 0.48 < noise <= 6.84 else 0.0)
        torch.testing.assert_close(hybrid.guide(given, log_r, step_at(t, t - 1)).scale, expected.float())


@pytest.mark.parametrize(("scale", "most"), [(1.0, 10.0), (4.0, 10.0), (1.0, 2.0)])
def test_the_scale_is_bounded_on_both_sides_however_the_evidence(scale, most):
    guidance, x = FeedbackGuidance(0.9, offset=-1e3, scale=scale, max_scale=most), torch.zeros(3, 2)
    given, step = Predictions(x, x.unsqueeze(1), null=x), step_at(500, 490)
    low = guidance.observe(guidance.start(x, 1), step, x, x, given)
    assert guidance.guide(given, low, step).scale.tolist() == pytest.approx([most] * 3)
    up = FeedbackGuidance(0.9, offset=1e3, scale=scale, max_scale=most)
    high = up.observe(low, step, x, x, given)
    assert (high == 3).all()
    assert up.guide(given, high, step).scale.tolist() == pytest.approx([1 / (1 - 0.1 * math.exp(-3)) + scale - 1] * 3)


def test_evidence_for_the_class_lowers_the_scale():
    guidance, step = FeedbackGuidance(0.9), step_at(500, 480)
    x_t = torch.zeros(2, 2)
    base, null = torch.full((2, 2), -0.1), torch.full((2, 2), 0.1)
    x_s = torch.stack([step.transition.mean(x_t, base)[0], step.transition.mean(x_t, null)[0]])
    given = Predictions(base, base.unsqueeze(1), null=null)
    state = guidance.observe(guidance.start(x_t, 1), step, x_t, x_s, given)
    scale = guidance.guide(given, state, step).scale
    assert scale[0] < 1 / 0.9 < scale[1]


def test_of_the_forbidden_classes_it_evaluates_none():
    run = trajectory(WHOLE, FeedbackGuidance(0.9), [0], Sampler(10), BatchNoise((8, 2)), 1)
    assert run.posterior.numel() == 0


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"pi": 0.0}, "pi must be between 0.1 and 1"),
        ({"pi": 1.1}, "pi must be between"),
        ({"pi": 0.15, "scale": 5.0}, "pi must be between 0.167 and 1"),
        ({"pi": math.nan}, "pi must be between"),
        ({"scale": 0.5}, "scale of FeedbackGuidance must be at least 1"),
        ({"max_scale": 1.0}, "max_scale must be above scale"),
        ({"max_scale": math.inf}, "max_scale must be above scale 1 and finite"),
        ({"cap": -1.0}, "cap must be at least 0"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"low": 2.0, "high": 1.0}, "0 <= low < high"),
    ],
)
def test_settings_out_of_range_are_refused(setting, reason):
    with pytest.raises(SettingError, match=reason):
        FeedbackGuidance(**setting)
