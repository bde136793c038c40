"""Steps of one length, and as long as the odds say, against the exact gradients of a mixture."""

import math
from dataclasses import replace

import pytest
import torch
from by_hand import FOUR, LINEAR, exact_gradient, predicted, predictions, states, step_at, update
from mixture import BatchNoise
from torch import Tensor

from dng_lightning.guidance import DynamicGeoGuide, DynamicNegativeGuidance, GeoGuide, Guidance
from dng_lightning.interfaces import Predictions, Step
from dng_lightning.posterior import TrackedPosterior

each_source = pytest.mark.parametrize("source", ["classifier", "differences"])


def moves(guidance: Guidance, given: Predictions, x_t: Tensor, step: Step, state: Tensor | None = None) -> Tensor:
    """How far the ancestral kernel's mean is moved, (B, D)."""
    guided = guidance.guide(given, state, step).denoised
    return step.kernel.mean(x_t, guided) - step.kernel.mean(x_t, given.denoised)


@each_source
@pytest.mark.parametrize(("t", "s", "count"), [(900, 880, 50), (400, 399, 1000), (10, 0, 100)])
def test_every_step_away_has_one_length_and_goes_down_the_gradient(source, t, s, count):
    guidance, x_t, step = GeoGuide(0.3, source=source), states(t), step_at(t, s, count=count)
    moved = moves(guidance, predicted(guidance, x_t, t, [1]), x_t, step)
    gradient = exact_gradient(x_t, t, 1)
    far = gradient.norm(dim=1) > 1e-9  # of the other classes, where p is 1, there is no gradient
    assert far.sum() > 200
    expected = -0.3 * math.sqrt(2) / count * gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved[far], expected[far], rtol=0, atol=1e-6 * 0.3 / count)


@each_source
def test_every_step_to_a_class_goes_up_its_gradient(source):
    guidance, x_t, step = GeoGuide(0.3, goal="class", source=source), states(400), step_at(400, 380, count=50)
    moved = moves(guidance, predicted(guidance, x_t, 400, [0], 3), x_t, step)
    gradient = exact_gradient(x_t, 400, 3)
    expected = 0.3 * math.sqrt(2) / 50 * gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-9)


@each_source
def test_allowed_weighs_several_classes_by_their_odds(source):
    guidance, x_t, step = GeoGuide(0.3, goal="allowed", source=source), states(400), step_at(400, 380)
    moved = moves(guidance, predicted(guidance, x_t, 400, [0, 2]), x_t, step)
    p = FOUR.posterior(x_t, 400, [0, 2])
    direction = -(p[:, :1] * exact_gradient(x_t, 400, 0) + p[:, 1:] * exact_gradient(x_t, 400, 2))
    direction = direction / direction.norm(dim=1, keepdim=True)
    # 0.3 sqrt(2) / 10 long
    torch.testing.assert_close(moved, 0.3 * math.sqrt(2) / 10 * direction, rtol=0, atol=1e-6)


def test_the_length_is_that_of_the_root_of_all_numbers_of_an_image():
    base, gradient = BatchNoise((3, 1, 6, 6))(), BatchNoise((3, 1, 1, 6, 6), seed=1)()
    given = Predictions(base, base.new_empty(3, 0, 1, 6, 6), log_posterior=torch.zeros(3, 1), gradient=gradient)
    moved = moves(GeoGuide(0.5), given, torch.zeros_like(base), step_at(500, 480, count=20))
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((3,), 0.5 * 6 / 20), rtol=1e-5, atol=0)


def test_where_there_is_no_direction_nothing_moves():
    base, step = BatchNoise((4, 2))(), step_at(500, 480)
    gradient = torch.tensor([0.0, 1e-30, 1.0, 1e30]).view(4, 1, 1).expand(4, 1, 2)
    given = Predictions(base, base.unsqueeze(1), log_posterior=torch.full((4, 1), -1.0), gradient=gradient)
    denoised = GeoGuide(0.5).guide(given, None, step).denoised
    assert denoised.isfinite().all()
    assert torch.equal(denoised[0], base[0])
    assert torch.equal(GeoGuide(0.5, source="differences").guide(given, None, step).denoised, base)
    dynamic = DynamicGeoGuide(posterior=TrackedPosterior(0.9))
    assert torch.equal(dynamic.guide(given, dynamic.start(base, 1), step).denoised, base)


def test_the_way_to_a_class_goes_by_values_and_not_by_which_tensors_are_one():
    guidance, given, step = GeoGuide(goal="class", source="differences"), predictions(1), step_at()
    guided = guidance.guide(given, None, step).denoised
    assert not torch.equal(guided, given.denoised)
    assert given.null is not None
    copy = replace(given, denoised=given.denoised.clone(), null=given.null.clone())
    assert torch.equal(guidance.guide(copy, None, step).denoised, guided)
    # where both predictions are equal nothing moves, be they one tensor or two
    for null in (given.denoised, given.denoised.clone()):
        assert torch.equal(guidance.guide(replace(given, null=null), None, step).denoised, given.denoised)


# --- the dynamic step ---


@pytest.mark.parametrize(("p", "share"), [(0.01, 0.01 / 0.99), (0.4, 2 / 3), (0.5, 1.0), (0.98, 1.0)])
def test_the_dynamic_step_goes_along_the_dynamic_push_and_is_as_long_as_the_odds(p, share):
    guidance, x_t, step = DynamicGeoGuide(0.3), states(400), step_at(400, 380, count=50)
    given = FOUR.shared([0, 2]).predict(x_t, step.level)
    # two classes, a quarter and three quarters of p
    log_p = torch.tensor([[p / 4, 3 * p / 4]], dtype=torch.double).log().expand(256, 2)
    push = DynamicNegativeGuidance(1.0).guide(given, log_p, step).denoised - given.denoised
    moved = moves(guidance, given, x_t, step, log_p)
    expected = share * 0.3 * math.sqrt(2) / 50 * push / push.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-7)
    scale = guidance.guide(given, log_p, step).scale
    torch.testing.assert_close(scale, torch.full((256,), 0.3 * share, dtype=torch.double), rtol=1e-6, atol=0)


def test_the_dynamic_step_tracks_as_dynamic_guidance_does():
    x_t, x_s, step = states(400), states(300), step_at(400, 300)
    given = FOUR.shared([0]).predict(x_t, LINEAR.level(400))
    posterior = TrackedPosterior(0.3, temperature=0.5, offset=1e-3)
    ours, theirs = DynamicGeoGuide(posterior=posterior), DynamicNegativeGuidance(posterior=posterior)
    state = ours.start(x_t, 1)
    assert torch.equal(update(ours, state, step, x_t, x_s, given), update(theirs, state, step, x_t, x_s, given))
