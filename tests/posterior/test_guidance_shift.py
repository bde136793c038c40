"""How much of a guidance's own push a posterior takes for evidence."""

import math

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, Trajectory, trajectory
from tracking import LINEAR, advance, step_between

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicGeoGuide, DynamicNegativeGuidance, Guidance
from dng_lightning.interfaces import Predictions
from dng_lightning.posterior import CalibratedPosterior, TrackedPosterior
from dng_lightning.posterior.base import odds
from dng_lightning.sampling import Sampler

MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
TWO = GaussianMixture(LINEAR, MEANS[:2], 0.3)
FOUR = GaussianMixture(LINEAR, MEANS, [0.2, 0.3, 0.4, 0.5])
WEIGHTS = [0.0, 0.25, 0.5, 1.0]


def dynamic(scale: float, **settings: object) -> DynamicNegativeGuidance:
    return DynamicNegativeGuidance(scale, TrackedPosterior(**settings))


def run(mixture: GaussianMixture, guidance: Guidance, count: int, sampler: Sampler) -> Trajectory:
    forbidden = [0] if mixture is TWO else [0, 2]
    return trajectory(mixture, guidance, forbidden, sampler, BatchNoise((count, 2)))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("priors", [[0.2], [0.1, 0.25, 0.05]], ids=["one class", "three classes"])
@pytest.mark.parametrize("calibration", [None, [[0, 1.2, -1.0]]], ids=["tracked", "calibrated"])
def test_what_is_left_out_is_the_share_of_the_way_between_the_means_along_the_difference(
    weight, clip, priors, calibration
):
    """log q(x_s | c) / q(x_s) is linear in x_s: <x_s, mu_c - mu> / v, and the push is what moved x_s."""
    step = step_between(500, 480, clip=clip)
    kernel, variance = step.kernel, step.kernel.variance
    noise, classes = BatchNoise((5, 3, 4, 4), dtype=torch.double), len(priors)
    x_t, base = noise(), noise()
    given = Predictions(base, torch.stack([base + 0.4 * noise() for _ in priors], 1))
    kind = CalibratedPosterior if calibration else TrackedPosterior
    some, whole = (kind(calibration or priors, guidance_shift_weight=share) for share in (weight, 1.0))
    state = some.start(x_t, classes)
    guided = DynamicNegativeGuidance(3.0, some).guide(given, state, step)
    pushed, mean = kernel.mean(x_t, guided.denoised), kernel.mean(x_t, base)
    x_s = pushed + kernel.std * noise()
    away = (kernel.mean(x_t.unsqueeze(1), given.negatives) - mean.unsqueeze(1)).flatten(2)
    left_out = (1 - weight) * (away * (pushed - mean).flatten(1).unsqueeze(1)).sum(2) / variance
    one, other = (posterior.update(state, step, x_t, x_s, given, guided) for posterior in (some, whole))
    torch.testing.assert_close(one, other - left_out, rtol=0, atol=1e-9)
    if classes == 1:
        assert left_out.max() <= 0  # what was pushed away looks less like the class
        assert weight == 1 or left_out.min() < -1e-3
    if classes == 1 and clip is None:
        scale = 3 * odds(some.log_prob(given, state, step)).double()
        torch.testing.assert_close(left_out, -(1 - weight) * scale * away.square().sum(2) / variance, rtol=1e-5, atol=0)


def test_the_whole_push_is_the_default_of_the_tracked_posterior_and_none_of_it_of_the_calibrated_one():
    assert TrackedPosterior(0.3) == TrackedPosterior(0.3, guidance_shift_weight=1.0)
    assert CalibratedPosterior([[0, 1, 0]]) == CalibratedPosterior([[0, 1, 0]], guidance_shift_weight=0.0)
    guidance = dynamic(2.0, prior=0.3)
    seen = run(FOUR, guidance, 64, Sampler(40))
    predictor, log_p = FOUR.shared([0, 2]), guidance.start(seen.x[0], 2)
    for index, step in enumerate(seen.steps):
        assert torch.equal(seen.posterior[index], log_p.exp())
        x_t, x_s = seen.x[index : index + 2]
        log_p = advance(guidance.posterior, log_p, step, x_t, x_s, predictor.predict(x_t, step.level))


@pytest.mark.parametrize("weight", WEIGHTS[:-1])
@pytest.mark.parametrize("sampler", [Sampler(40), Sampler(40, variance="beta", clip=1.0)], ids=["plain", "clipped"])
def test_without_a_push_there_is_nothing_to_leave_out(weight, sampler):
    one, other = (
        run(FOUR, dynamic(0.0, prior=0.2, guidance_shift_weight=share), 64, sampler) for share in (weight, 1.0)
    )
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.posterior, other.posterior)


def test_the_posterior_of_guided_images_is_a_martingale_without_the_own_push_and_falls_with_it():
    # a prior that no evidence here lifts to p_max, and a push of .3 times what the evidence says
    def ratios(weight: float) -> torch.Tensor:
        guidance = dynamic(0.3e8, prior=1e-8, guidance_shift_weight=weight)
        return run(TWO, guidance, 2048, Sampler(100)).posterior.squeeze(2) / 1e-8

    without, half, whole = ratios(0.0), ratios(0.5), ratios(1.0)
    for at in range(10, 71, 10):  # later a few images say it all: no mean of 2,048 is to be trusted
        error = float(without[at].std()) / without.shape[1] ** 0.5
        assert abs(float(without[at].mean()) - 1) < 4 * error
    # E[p_s] = E[p_t exp(-weight scale |mu_c - mu|^2 / v)]
    error = float(whole[70].std()) / whole.shape[1] ** 0.5
    assert float(whole[70].mean()) < 1 - 8 * error
    assert float(whole[70].mean()) < float(half[70].mean()) - 3 * error
    assert float(half[70].mean()) < 1 - 3 * error


@pytest.mark.parametrize("mixture", [TWO, FOUR], ids=["one class", "two classes"])
@pytest.mark.parametrize("clip", [None, 3.0])
def test_the_less_of_its_push_it_counts_the_less_it_leaks_and_the_further_it_pushes(mixture, clip):
    leaks, pushes = [], []
    for weight in (0.0, 0.5, 1.0):
        guidance = dynamic(1.0, prior=0.4, guidance_shift_weight=weight)
        seen = run(mixture, guidance, 1024, Sampler(100, clip=clip))
        assert seen.x_0.isfinite().all()
        leaks.append(float(torch.isin(mixture.nearest(seen.x_0), torch.tensor([0, 2])).double().mean()))
        pushes.append(float(seen.scale.mean()))
    assert leaks[0] <= leaks[1] < leaks[2]
    assert pushes[0] > pushes[1] > pushes[2]


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_below_eta_1_it_leaves_out_no_more_than_was_pushed(eta):
    guidance = dynamic(1.0, prior=0.5, guidance_shift_weight=0.0, divergence=1)
    seen = run(TWO, guidance, 256, Sampler(100, eta))
    # 1.72 and 1.89, and 2.76 at eta 1; it ran away to more than 100 where the wider kernel's push was left out
    assert 1.5 < float(seen.x_0[:, 0].mean()) < 2.2
    assert (seen.x_0[:, 0] > 0).all()


@pytest.mark.parametrize("method", [DynamicNegativeGuidance, DynamicGeoGuide])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_with_none_of_it_the_posterior_sees_the_step_that_had_been_taken_without(method, eta):
    step = step_between(500, 480, eta=eta)
    x_t, base, other, noise = BatchNoise((4, 5, 2), dtype=torch.double)()
    given = Predictions(base, other.unsqueeze(1))
    guidance = method(posterior=TrackedPosterior(prior=0.3, guidance_shift_weight=0.0))
    state = guidance.start(x_t, 1)
    guided = guidance.guide(given, state, step)
    x_s, pushed = (
        step.sampling_kernel.mean(x_t, denoised) + step.sampling_kernel.std * noise
        for denoised in (base, guided.denoised)
    )
    assert not torch.allclose(pushed, x_s)
    found = guidance.update(state, step, x_t, pushed, given, guided)
    torch.testing.assert_close(found, advance(guidance.posterior, state, step, x_t, x_s, given), rtol=0, atol=1e-9)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("kind", [TrackedPosterior, CalibratedPosterior])
def test_the_weight_is_between_0_and_1(kind, weight):
    with pytest.raises(SettingError, match=r"guidance_shift_weight must be in .0, 1."):
        kind(guidance_shift_weight=weight)
