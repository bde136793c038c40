"""Guidance by gradients, and by steps of one length, against the exact gradients of a mixture."""

import math
from dataclasses import replace

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, across, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    ClassifierGuidance,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    GeoGuide,
    Guidance,
    OracleNegativeGuidance,
    Predictions,
    Step,
)
from dng_lightning.sampling import Sampler
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
FOUR = GaussianMixture(LINEAR, MEANS, [0.2, 0.3, 0.4, 0.5])
IN_64_D = GaussianMixture(LINEAR, across(MEANS, 64), 0.3)
LEVELS = [900, 400, 100]


def states(t: int) -> Tensor:
    return 1.5 * BatchNoise((256, 2), seed=t, dtype=torch.double)()


def told(guidance: Guidance, x_t: Tensor, t: int, forbidden: list[int], wanted: int | None = None) -> Predictions:
    """What the exact predictor gives a guidance."""
    labels = None if wanted is None else torch.full((len(x_t),), wanted)
    return FOUR.predictor(guidance, forbidden).predict(x_t, t, guidance.needs, labels)


def at(t: int, s: int, index: int = 0, count: int = 10, variance: str = "beta_tilde") -> Step:
    return Step(index, count, t, s, LINEAR.transition(t, s, variance=variance))


def exact_gradient(x_t: Tensor, t: int, label: int) -> Tensor:
    """grad log p(c | x_t) = (eps - eps_c) / sigma."""
    level = torch.full((len(x_t),), t)
    return (FOUR.eps(x_t, level) - FOUR.eps(x_t, level, torch.full_like(level, label))) / LINEAR.sigma[t]


# ----------------------------------------------------------------------------------------------- classifier guidance


@pytest.mark.parametrize("t", LEVELS)
@pytest.mark.parametrize("wanted", range(4))
def test_the_exact_gradient_at_scale_1_recovers_the_conditional_prediction(wanted, t):
    guidance, x_t = ClassifierGuidance(goal="wanted", unconditional=True), states(t)
    guided = guidance.guide(told(guidance, x_t, t, [0], wanted), None, at(t, t - 10))
    expected = FOUR.eps(x_t, torch.full((256,), t), torch.full((256,), wanted))
    torch.testing.assert_close(guided.eps, expected, rtol=0, atol=1e-9)
    assert (guided.scale == 1).all()


def test_on_a_conditional_model_the_two_add_up():
    guidance, x_t = ClassifierGuidance(2.5, goal="wanted"), states(400)
    given = told(guidance, x_t, 400, [0], 3)
    guided = guidance.guide(given, None, at(400, 390))
    expected = given.base - 2.5 * LINEAR.sigma[400] * exact_gradient(x_t, 400, 3)
    torch.testing.assert_close(guided.eps, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("t", LEVELS)
@pytest.mark.parametrize("forbidden", [[2], [0, 2, 3]])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_repelling_by_the_exact_odds_is_dynamic_negative_guidance_by_the_exact_posterior(scale, forbidden, t):
    repelling, oracle, x_t = ClassifierGuidance(scale), OracleNegativeGuidance(scale), states(t)
    given = told(repelling, x_t, t, forbidden)
    assert given.negatives.shape[1] == 0  # the gradients are enough
    guided = repelling.guide(given, None, at(t, t - 10))
    expected = oracle.guide(told(oracle, x_t, t, forbidden), None, at(t, t - 10))
    # one scales in fp64 and the other in fp32, odds of up to 99 and differences of up to 10
    torch.testing.assert_close(guided.eps, expected.eps, rtol=0, atol=1e-4)
    torch.testing.assert_close(guided.scale, expected.scale.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(guided.posterior, expected.posterior, rtol=0, atol=0)


@pytest.mark.parametrize("mixture", [FOUR, IN_64_D], ids=["2-D", "64-D"])
def test_so_are_the_samples(mixture):
    noise = {"shape": (256, mixture.dimensions), "seed": 5, "dtype": torch.double}
    repelled = trajectory(mixture, ClassifierGuidance(), [2], Sampler(50), BatchNoise(**noise))
    expected = trajectory(mixture, OracleNegativeGuidance(), [2], Sampler(50), BatchNoise(**noise))
    torch.testing.assert_close(repelled.x_0, expected.x_0, rtol=0, atol=1e-6)
    assert (mixture.nearest(repelled.x_0) == 2).double().mean() < 0.03


def test_away_adds_up_the_bare_gradients_with_the_sign_turned():
    guidance, x_t = ClassifierGuidance(0.7, goal="away"), states(400)
    given = told(guidance, x_t, 400, [0, 2])
    guided = guidance.guide(given, None, at(400, 390))
    gradient = exact_gradient(x_t, 400, 0) + exact_gradient(x_t, 400, 2)
    torch.testing.assert_close(guided.eps, given.base + 0.7 * LINEAR.sigma[400] * gradient, rtol=0, atol=1e-9)
    torch.testing.assert_close(guided.scale, torch.full((256,), 1.4, dtype=torch.double))


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
@pytest.mark.parametrize(("t", "s"), [(900, 880), (400, 399), (10, 0)])
def test_the_mean_moves_by_the_scaled_variance_times_the_gradient(t, s, variance):
    guidance, x_t, step = ClassifierGuidance(1.7, goal="away", rule="mean"), states(t), at(t, s, variance=variance)
    given = told(guidance, x_t, t, [1])
    moved = step.transition.mean(x_t, guidance.guide(given, None, step).eps) - step.transition.mean(x_t, given.base)
    expected = -1.7 * step.transition.variance * exact_gradient(x_t, t, 1)
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-12)
    assert bool(moved.any()) == (s > 0)


# ---------------------------------------------------------------------------------------------------------- GeoGuide


SOURCES = ["classifier", "differences"]


def moves(guidance: Guidance, given: Predictions, x_t: Tensor, step: Step, state: Tensor | None = None) -> Tensor:
    """How far the ancestral kernel's mean is moved, (B, D)."""
    kernel = step.transition
    return kernel.mean(x_t, guidance.guide(given, state, step).eps) - kernel.mean(x_t, given.base)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("t", "s", "count"), [(900, 880, 50), (400, 399, 1000), (10, 0, 100)])
def test_every_step_away_has_one_length_and_goes_down_the_gradient(source, t, s, count):
    guidance, x_t, step = GeoGuide(0.3, source=source), states(t), at(t, s, count=count)
    moved = moves(guidance, told(guidance, x_t, t, [1]), x_t, step)
    gradient = exact_gradient(x_t, t, 1)
    far = gradient.norm(dim=1) > 1e-9  # of the other classes, where p is 1, there is no gradient
    assert far.sum() > 200
    expected = -0.3 * math.sqrt(2) / count * gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved[far], expected[far], rtol=0, atol=1e-6 * 0.3 / count)


@pytest.mark.parametrize("source", SOURCES)
def test_every_step_to_a_wanted_class_goes_up_its_gradient(source):
    guidance, x_t, step = GeoGuide(0.3, goal="wanted", source=source), states(400), at(400, 380, count=50)
    moved = moves(guidance, told(guidance, x_t, 400, [0], wanted=3), x_t, step)
    gradient = exact_gradient(x_t, 400, 3)
    expected = 0.3 * math.sqrt(2) / 50 * gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("source", SOURCES)
def test_allowed_weighs_several_classes_by_their_odds(source):
    guidance, x_t, step = GeoGuide(0.3, goal="allowed", source=source), states(400), at(400, 380)
    moved = moves(guidance, told(guidance, x_t, 400, [0, 2]), x_t, step)
    p = FOUR.posterior(x_t, 400, [0, 2])
    direction = -(p[:, :1] * exact_gradient(x_t, 400, 0) + p[:, 1:] * exact_gradient(x_t, 400, 2))
    direction = direction / direction.norm(dim=1, keepdim=True)
    # 0.3 sqrt(2) / 10 long
    torch.testing.assert_close(moved, 0.3 * math.sqrt(2) / 10 * direction, rtol=0, atol=1e-6)


def test_the_length_is_that_of_the_root_of_all_numbers_of_an_image():
    base, gradient = BatchNoise((3, 1, 6, 6))(), BatchNoise((3, 1, 1, 6, 6), seed=1)()
    given = Predictions(base, base.new_empty(3, 0, 1, 6, 6), torch.zeros(3, 1), gradient=gradient)
    moved = moves(GeoGuide(0.5), given, torch.zeros_like(base), at(500, 480, count=20))
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((3,), 0.5 * 6 / 20), rtol=1e-5, atol=0)


def test_where_there_is_no_direction_nothing_moves():
    base = BatchNoise((4, 2))()
    gradient = torch.tensor([0.0, 1e-30, 1.0, 1e30]).view(4, 1, 1).expand(4, 1, 2)
    given = Predictions(base, base.unsqueeze(1), torch.full((4, 1), -1.0), gradient=gradient)
    eps = GeoGuide(0.5).guide(given, None, at(500, 480)).eps
    assert eps.isfinite().all()
    assert torch.equal(eps[0], base[0])
    assert torch.equal(GeoGuide(0.5, source="differences").guide(given, None, at(500, 480)).eps, base)
    dynamic = DynamicGeoGuide(prior=0.9)
    assert torch.equal(dynamic.guide(given, dynamic.start(base, 1), at(500, 480)).eps, base)


@pytest.mark.parametrize(("p", "share"), [(0.01, 0.01 / 0.99), (0.4, 2 / 3), (0.5, 1.0), (0.98, 1.0)])
def test_the_dynamic_step_goes_along_the_dynamic_push_and_is_as_long_as_the_odds(p, share):
    guidance, x_t, step = DynamicGeoGuide(0.3), states(400), at(400, 380, count=50)
    given = FOUR.shared([0, 2]).predict(x_t, 400)
    # two classes, a quarter and three quarters of p
    log_p = torch.tensor([[p / 4, 3 * p / 4]], dtype=torch.double).log().expand(256, 2)
    push = DynamicNegativeGuidance(1.0).guide(given, log_p, step).eps - given.base
    moved = moves(guidance, given, x_t, step, log_p)
    # a lower noise prediction is a mean that lies farther along it
    expected = -share * 0.3 * math.sqrt(2) / 50 * push / push.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-7)
    scale = guidance.guide(given, log_p, step).scale
    torch.testing.assert_close(scale, torch.full((256,), 0.3 * share, dtype=torch.double), rtol=1e-6, atol=0)


def test_the_dynamic_step_tracks_as_dynamic_guidance_does():
    x_t, x_s, step = states(400), states(300), at(400, 300)
    given = FOUR.shared([0]).predict(x_t, 400)
    settings = {"prior": 0.3, "temperature": 0.5, "offset": 1e-3}
    ours, theirs = DynamicGeoGuide(**settings), DynamicNegativeGuidance(**settings)
    state = ours.start(x_t, 1)
    assert torch.equal(ours.observe(state, step, x_t, x_s, given), theirs.observe(state, step, x_t, x_s, given))


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("method", [ClassifierGuidance, GeoGuide])
@pytest.mark.parametrize(
    ("setting", "reason"),
    [({"goal": "up"}, "goal must be allowed, away or wanted; got up"), ({"cap": 1.0}, r"cap must be inside \(0, 1\)")],
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
    "guidance", [ClassifierGuidance(goal="wanted"), *(GeoGuide(goal="wanted", source=source) for source in SOURCES)]
)
def test_a_goal_without_a_wanted_class_says_what_to_set(guidance):
    with pytest.raises(SettingError, match="goal wanted has no class to go to: set wanted"):
        guidance.guide(told(guidance, states(400), 400, [0]), None, at(400, 390))


@pytest.mark.parametrize("goal", ["allowed", "away"])
def test_predictions_without_a_gradient_are_refused(goal):
    guidance = ClassifierGuidance(goal=goal)
    given = replace(told(guidance, states(400), 400, [0]), gradient=None)
    with pytest.raises(SettingError, match="wrap the predictor in WithPosterior"):
        guidance.guide(given, None, at(400, 390))
