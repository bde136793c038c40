"""Guidance away from reference images: each push against its formula, and the exact one against exact guidance."""

import math

import pytest
import torch
from by_hand import LINEAR, eps_of, step_at, update
from mixture import BatchNoise, GaussianMixture, across, near
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    DynamicSafeDenoiser,
    SafeDenoiser,
    SafetyGuidedFlow,
    ShieldedDiffusion,
)
from dng_lightning.guidance.dynamic_safe_denoiser import unsafe
from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.references import References
from dng_lightning.interfaces import Predictions, Step
from dng_lightning.kernel import Kernel
from dng_lightning.posterior import ClassifierPosterior, TrackedPosterior

ONE = torch.tensor([[1.0, 0.0]], dtype=torch.double)
TWO = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.double)


def moved(guidance: ReferenceGuidance, denoised: Tensor, step: Step | None = None) -> tuple[Tensor, Tensor]:
    """Where a denoised prediction is moved, and the scale that is reported."""
    x_t = BatchNoise(denoised.shape, dtype=torch.double)()
    given = Predictions(denoised, denoised.new_empty(len(denoised), 0, *denoised.shape[1:]))
    guided = guidance.guide(given, guidance.start(x_t, 1), step or step_at())
    return guided.denoised, guided.scale


def draws(count: int = 50, size: int = 2) -> Tensor:
    return BatchNoise((count, size), seed=3, dtype=torch.double)()


def test_the_state_of_the_dynamic_one_is_the_image_and_its_posteriors():
    guidance, x = near(DynamicSafeDenoiser, posterior=TrackedPosterior(0.2)), draws()
    given, step = Predictions(x, x.unsqueeze(1) + 0.1), step_at()
    state = guidance.start(x, 1)
    assert state.x_t is x
    after = update(guidance, state, step, x, x + 1, given)
    assert torch.equal(after.x_t, x + 1)
    assert after.references is state.references
    dynamic = DynamicNegativeGuidance(posterior=TrackedPosterior(0.2))
    assert torch.equal(after.posterior, update(dynamic, dynamic.start(x, 1), step, x, x + 1, given))


@pytest.mark.parametrize("method", [ShieldedDiffusion, SafetyGuidedFlow, SafeDenoiser])
def test_what_is_pushed_is_the_prediction_within_the_samplers_bound(method):
    settings = {ShieldedDiffusion: {"radius": 3.0}, SafetyGuidedFlow: {"gamma": 0.5}}.get(
        method, {"bandwidth": 1.0, "threshold": 0.0}
    )
    guidance, denoised, plain = near(method, TWO, **settings), 2 * draws(), step_at()
    kernel = Kernel(plain.level, plain.next_level, clip=1.0)
    push = moved(guidance, denoised, Step(0, 10, kernel, kernel))[0] - denoised
    expected = moved(guidance, denoised.clamp(-1, 1), plain)[0] - denoised.clamp(-1, 1)
    torch.testing.assert_close(push, expected, rtol=0, atol=1e-12)


# --- SPELL ---


def test_a_shield_moves_nothing_outside_and_pushes_out_to_its_surface_from_inside():
    denoised = draws(200)
    end, scale = moved(near(ShieldedDiffusion, ONE, scale=1.0, radius=1.2), denoised)
    before, after = (denoised - ONE).norm(dim=1), (end - ONE).norm(dim=1)
    within = before < 1.2
    assert 30 < within.sum() < 170
    torch.testing.assert_close(end[~within], denoised[~within], rtol=0, atol=1e-12)
    torch.testing.assert_close(after[within], torch.full_like(after[within], 1.2))
    # on a straight line from the centre
    torch.testing.assert_close((end - ONE)[within] / 1.2, ((denoised - ONE) / before.unsqueeze(1))[within])
    assert torch.equal(scale, within.double())


def test_shields_add_up_by_the_formula():
    denoised = draws(200)
    end, _ = moved(near(ShieldedDiffusion, TWO, radius=2.5), denoised)
    away = denoised.unsqueeze(1) - TWO
    weight = (2.5 / away.norm(dim=2) - 1).clamp(min=0)
    assert (weight > 0).all(1).any()
    torch.testing.assert_close(end, denoised + 1.6 * (weight.unsqueeze(2) * away).sum(1), rtol=0, atol=1e-10)


def test_at_the_very_centre_of_a_shield_nothing_moves():
    end, _ = moved(near(ShieldedDiffusion, ONE, radius=1.0), ONE.clone())
    torch.testing.assert_close(end, ONE, rtol=0, atol=1e-12)


def test_the_radius_reaches_from_95_of_100_references_to_another():
    # pairs 1, 2, ... 20 apart, the pairs far from each other: the 95th percentile lies between 19 and 20
    pairs = torch.tensor([[1000.0 * i + d, 0.0] for i in range(1, 21) for d in (0, i)], dtype=torch.double)
    for distance, pushed in ((18.9, True), (20.1, False)):
        _, scale = moved(near(ShieldedDiffusion, pairs), torch.tensor([[1000.0, distance]], dtype=torch.double))
        assert bool(scale) == pushed


# --- SGF ---


def test_the_flow_goes_down_the_kernel_density():
    denoised = draws().requires_grad_()
    potential = (-0.7 * (denoised.unsqueeze(1) - TWO).square().sum(2)).exp().sum()
    (gradient,) = torch.autograd.grad(potential, denoised)
    end, _ = moved(near(SafetyGuidedFlow, TWO, scale=0.3, gamma=0.7, bound=None), denoised.detach())
    torch.testing.assert_close(end, (denoised - 0.3 * gradient).detach(), rtol=0, atol=1e-10)


def test_the_flow_leads_away_from_a_single_reference():
    denoised = draws()
    end, _ = moved(near(SafetyGuidedFlow, ONE, gamma=0.5), denoised)
    assert ((end - ONE).norm(dim=1) > (denoised - ONE).norm(dim=1)).all()


def test_the_bound_shortens_the_long_pushes_alone():
    denoised = draws()
    free, bounded = (
        moved(near(SafetyGuidedFlow, TWO, gamma=0.7, bound=bound), denoised)[0] - denoised for bound in (None, 0.4)
    )
    length = free.norm(dim=1, keepdim=True)
    assert 5 < (length > 0.4).sum() < 45
    torch.testing.assert_close(bounded, torch.where(length > 0.4, 0.4 / length, 1.0) * free, rtol=0, atol=1e-10)


def test_gamma_is_the_one_that_leaves_a_twentieth_at_the_4th_to_6th_neighbour():
    ring = torch.linspace(0, 2 * torch.pi, 13, dtype=torch.double)[:-1]
    images = torch.stack([ring.cos(), ring.sin()], 1)
    # of 12 on a ring, the neighbours come in pairs: the 4th is two places away, the 5th and 6th three
    two, three = (float((images[places] - images[0]).square().sum()) for places in (2, 3))
    gamma = References(images).gamma
    assert gamma * (two + 2 * three) / 3 == pytest.approx(-math.log(0.05))


# --- Safe Denoiser ---


def test_the_released_safe_denoiser_is_its_formula():
    denoised = draws(200)
    end, scale = moved(near(SafeDenoiser, TWO, bandwidth=0.8, threshold=0.3), denoised)
    kernel = (-(denoised.unsqueeze(1) - TWO).square().sum(2) / (2 * 0.8**2)).exp()
    mass = kernel.sum(1, keepdim=True)
    push = torch.where(mass > 0.3, 0.33 * (kernel @ TWO) / mass, 0.0)
    assert 20 < (mass > 0.3).sum() < 180
    torch.testing.assert_close(end, denoised - push, rtol=0, atol=1e-10)
    torch.testing.assert_close(scale, 0.33 * (mass > 0.3).squeeze(1).double())


def test_the_threshold_is_what_95_of_100_references_reach_by_the_others():
    images = draws(100)
    kernel = (-torch.cdist(images, images).square() / (2 * 0.2**2)).exp().fill_diagonal_(0)
    reached = float(kernel.sum(1).quantile(0.05))
    by_itself, explicit = (near(SafeDenoiser, images, bandwidth=0.2, threshold=each) for each in (None, reached))
    denoised = 2 * BatchNoise((400, 2), seed=4, dtype=torch.double)()
    _, scale = moved(by_itself, denoised)
    assert 50 < (scale > 0).sum() < 350
    assert torch.equal(scale, moved(explicit, denoised)[1])


@pytest.mark.parametrize("t", [900, 400, 100])
@pytest.mark.parametrize(("scale", "dimensions"), [(1.0, 2), (2.5, 2), (1.0, 64)])
def test_with_the_true_odds_and_the_true_unsafe_denoiser_it_is_dynamic_negative_guidance(scale, dimensions, t):
    """A class of points: as many references as it has are all there is to know of it."""
    points = across([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], dimensions)
    mixture = GaussianMixture(LINEAR, points, 0.0, [0.2, 0.3, 0.25, 0.25], classes=[[2, 3], [0], [1]])
    safe = near(DynamicSafeDenoiser, mixture.means[[2, 3]], scale=scale)
    oracle, x_t, step = (
        DynamicNegativeGuidance(scale, ClassifierPosterior()),
        1.5 * draws(256, dimensions),
        step_at(t, t - 10),
    )
    given = mixture.predictor(safe, [0]).predict(x_t, step.level, safe.needs())
    assert given.negatives.shape[1] == 0
    guided = safe.guide(given, safe.start(x_t, 1), step)
    expected = oracle.guide(mixture.predictor(oracle, [0]).predict(x_t, step.level, oracle.needs()), None, step)
    # the odds are scaled in fp32
    eps, expected_eps = (eps_of(each.denoised, x_t, t) for each in (guided, expected))
    torch.testing.assert_close(eps, expected_eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(guided.scale, expected.scale.double())
    torch.testing.assert_close(guided.posterior, expected.posterior)


@pytest.mark.parametrize("t", [800, 400, 200])
def test_many_draws_of_a_class_give_its_denoiser(t):
    mixture = GaussianMixture(LINEAR, [[-1.0, 0.5], [1.0, 0.0]], [0.4, 0.3])
    references, step = References(mixture.means[0] + 0.4 * draws(40_000)), step_at(t, t - 10)
    alpha, sigma = step.level.alpha, step.level.sigma
    x_t = alpha * (mixture.means[0] + 0.4 * BatchNoise((32, 2), 5, torch.double)())
    x_t = x_t + sigma * BatchNoise((32, 2), 6, torch.double)()
    exact = mixture.denoised(x_t, t, torch.zeros(32, dtype=torch.long))
    # importance sampling of 40,000 draws, of which some hundred to all count; the spread of the denoised is 0.4
    torch.testing.assert_close(unsafe(x_t, references, step), exact, rtol=0, atol=0.04)


def test_without_a_posterior_it_says_what_is_missing():
    with pytest.raises(SettingError, match="the predictions have no log_posterior"):
        moved(near(DynamicSafeDenoiser), draws())


# --- the references ---


@pytest.mark.parametrize("method", [SafeDenoiser, ShieldedDiffusion])
def test_what_the_references_alone_say_is_found_once(method, monkeypatch):
    quantile, found = torch.quantile, []
    monkeypatch.setattr(torch, "quantile", lambda *args: found.append(quantile(*args)) or found[-1])
    guidance = near(method, draws(50).float())
    for batch in (draws(5).float(), draws(7), draws(5), draws(5).float()):  # of two precisions
        for _ in range(3):
            guidance.push(batch, guidance.start(batch, 1))
    assert len(found) == 2


def test_the_references_are_on_the_device_and_in_the_precision_of_the_images():
    references, x = References(draws(50)), draws().float()
    assert references.like(draws()) is references
    single = references.like(x)
    assert single.images.dtype == torch.float32
    assert references.like(x) is single


def test_references_that_are_not_read_or_of_another_shape_are_refused():
    with pytest.raises(SettingError, match=r"references 'mnist/zeros.pt' are not read"):
        ShieldedDiffusion(references="mnist/zeros.pt").start(draws(), 1)
    with pytest.raises(SettingError, match=r"must be images of \(3,\); they are \(50, 2\)"):
        near(ShieldedDiffusion, draws()).start(draws(5, 3), 1)


def test_too_few_references_to_tell_a_scale_by_say_what_to_set():
    one, few = near(ShieldedDiffusion, ONE), near(SafetyGuidedFlow, TWO)
    with pytest.raises(SettingError, match="set the radius, bandwidth or gamma"):
        moved(one, draws())
    with pytest.raises(SettingError, match="fewer than 5 different reference images: set the gamma or bandwidth"):
        moved(few, draws())
    with pytest.raises(SettingError, match="fewer than 5 different reference images"):
        moved(near(SafeDenoiser, ONE.expand(9, 2)), draws())


# --- errors ---


@pytest.mark.parametrize(
    ("method", "setting", "reason"),
    [
        (ShieldedDiffusion, {"radius": 0.0}, r"radius must be in \(0, inf\)"),
        (SafetyGuidedFlow, {"gamma": -1.0}, r"gamma must be in \(0, inf\)"),
        (SafetyGuidedFlow, {"bound": 0.0}, r"bound must be in \(0, inf\)"),
        (SafeDenoiser, {"bandwidth": 0.0}, r"bandwidth must be in \(0, inf\)"),
        (SafeDenoiser, {"threshold": -1.0}, "threshold must be at least 0"),
        (SafeDenoiser, {"scale": -1.0}, "scale must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(method, setting, reason):
    with pytest.raises(SettingError, match=reason):
        near(method, **setting)
