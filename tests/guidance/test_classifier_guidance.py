"""Guidance by gradients against the exact gradients of a mixture."""

from dataclasses import replace

import pytest
import torch
from by_hand import FOUR, IN_64_D, LINEAR, eps_of, exact_gradient, predicted, states, step_at
from mixture import BatchNoise, trajectory

from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierGuidance, DynamicNegativeGuidance, GeoGuide
from dng_lightning.posterior import ClassifierPosterior
from dng_lightning.sampling import Sampler, sample

LEVELS = [900, 400, 100]
EXACT = ClassifierPosterior()


@pytest.mark.parametrize("t", LEVELS)
@pytest.mark.parametrize("label", range(4))
def test_the_exact_gradient_at_scale_1_recovers_the_conditional_prediction(label, t):
    guidance, x_t = ClassifierGuidance(goal="class", unconditional=True), states(t)
    guided = guidance.guide(predicted(guidance, x_t, t, [0], label), None, step_at(t, t - 10))
    expected = FOUR.denoised(x_t, t, torch.full((256,), label))
    torch.testing.assert_close(eps_of(guided.denoised, x_t, t), eps_of(expected, x_t, t), rtol=0, atol=1e-9)
    assert (guided.scale == 1).all()


def test_on_a_conditional_model_the_two_add_up():
    guidance, x_t = ClassifierGuidance(2.5, goal="class"), states(400)
    given = predicted(guidance, x_t, 400, [0], 3)
    guided = guidance.guide(given, None, step_at(400, 390))
    expected = eps_of(given.denoised, x_t, 400) - 2.5 * LINEAR.sigma[400] * exact_gradient(x_t, 400, 3)
    torch.testing.assert_close(eps_of(guided.denoised, x_t, 400), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("t", LEVELS)
@pytest.mark.parametrize("forbidden", [[2], [0, 2, 3]])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_repelling_by_the_exact_odds_is_dynamic_negative_guidance_by_the_exact_posterior(scale, forbidden, t):
    repelling, oracle, x_t = ClassifierGuidance(scale), DynamicNegativeGuidance(scale, EXACT), states(t)
    given, step = predicted(repelling, x_t, t, forbidden), step_at(t, t - 10)
    assert given.negatives.shape[1] == 0  # the gradients are enough
    guided = repelling.guide(given, None, step)
    expected = oracle.guide(predicted(oracle, x_t, t, forbidden), None, step)
    # one scales in fp64 and the other in fp32, odds of up to 99 and differences of eps of up to 10
    eps, expected_eps = (eps_of(each.denoised, x_t, t) for each in (guided, expected))
    torch.testing.assert_close(eps, expected_eps, rtol=0, atol=1e-4)
    torch.testing.assert_close(guided.scale, expected.scale.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(guided.posterior, expected.posterior, rtol=0, atol=0)


@pytest.mark.parametrize("mixture", [FOUR, IN_64_D], ids=["2-D", "64-D"])
def test_so_are_the_samples(mixture):
    noise = {"shape": (256, mixture.dimensions), "seed": 5, "dtype": torch.double}
    repelled = trajectory(mixture, ClassifierGuidance(), [2], Sampler(50), BatchNoise(**noise))
    oracle = DynamicNegativeGuidance(posterior=EXACT)
    expected = trajectory(mixture, oracle, [2], Sampler(50), BatchNoise(**noise))
    torch.testing.assert_close(repelled.x_0, expected.x_0, rtol=0, atol=1e-6)
    assert (mixture.nearest(repelled.x_0) == 2).double().mean() < 0.03


def test_away_adds_up_the_bare_gradients_with_the_sign_turned():
    guidance, x_t = ClassifierGuidance(0.7, goal="away"), states(400)
    given = predicted(guidance, x_t, 400, [0, 2])
    guided = guidance.guide(given, None, step_at(400, 390))
    gradient = exact_gradient(x_t, 400, 0) + exact_gradient(x_t, 400, 2)
    expected = eps_of(given.denoised, x_t, 400) + 0.7 * LINEAR.sigma[400] * gradient
    torch.testing.assert_close(eps_of(guided.denoised, x_t, 400), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(guided.scale, torch.full((256,), 1.4, dtype=torch.double))


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
@pytest.mark.parametrize(("t", "s"), [(900, 880), (400, 399), (10, 0)])
def test_the_mean_moves_by_the_scaled_variance_times_the_gradient(t, s, variance):
    guidance, x_t, step = ClassifierGuidance(1.7, goal="away", rule="mean"), states(t), step_at(t, s, kind=variance)
    given = predicted(guidance, x_t, t, [1])
    guided = guidance.guide(given, None, step).denoised
    moved = step.kernel.mean(x_t, guided) - step.kernel.mean(x_t, given.denoised)
    expected = -1.7 * step.kernel.variance * exact_gradient(x_t, t, 1)
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-12)
    assert bool(moved.any()) == (s > 0)


# --- errors, of GeoGuide as well ---


@pytest.mark.parametrize("method", [ClassifierGuidance, GeoGuide])
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"goal": "up"}, "goal must be allowed, away or class; got up"),
        ({"p_max": 1.0}, r"p_max must be in \(0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(method, setting, reason):
    with pytest.raises(SettingError, match=reason):
        method(**setting)


def test_so_are_an_unknown_rule_and_source():
    with pytest.raises(SettingError, match="rule must be score or mean; got ddim"):
        ClassifierGuidance(rule="ddim")
    with pytest.raises(SettingError, match="source must be classifier or differences; got eps"):
        GeoGuide(source="eps")


@pytest.mark.parametrize(
    "guidance",
    [
        ClassifierGuidance(goal="class"),
        GeoGuide(goal="class", source="classifier"),
        GeoGuide(goal="class", source="differences"),
    ],
)
def test_the_goal_class_without_a_class_is_refused_before_anything_is_evaluated(guidance):
    predictor = FOUR.predictor(guidance, [0])
    with pytest.raises(SettingError, match=r"(ClassifierGuidance|GeoGuide) guides toward a class: set class_labels"):
        sample(predictor, guidance, LINEAR, BatchNoise((8, 2)), Sampler(10))
    assert predictor.nfe == 0
    given = replace(predicted(guidance, states(400), 400, [0]), null=None)
    with pytest.raises(SettingError, match="goal class needs class_labels: set them"):
        guidance.guide(given, None, step_at(400, 390))


@pytest.mark.parametrize("goal", ["allowed", "away"])
def test_predictions_without_a_gradient_are_refused(goal):
    guidance = ClassifierGuidance(goal=goal)
    given = replace(predicted(guidance, states(400), 400, [0]), gradient=None)
    with pytest.raises(SettingError, match="the predictions have no gradient"):
        guidance.guide(given, None, step_at(400, 390))
