"""The evidence of a step: martingales, exact answers for points and Gaussians, and the missing divergence."""

import math
from dataclasses import replace

import pytest
import torch
from mixture import BatchNoise, GaussianMixture
from torch import Tensor
from tracking import FREE, LINEAR, advance, any_step, from_eps, start, step_between

from dng_lightning.interfaces import Predictions
from dng_lightning.posterior import ReleasedPosterior, TrackedPosterior
from dng_lightning.sampling import NetworkPairPredictor
from dng_lightning.schedule import CosineSchedule, NoiseSchedule, RectifiedFlowSchedule

POINTS = {
    "linear": LINEAR,
    "cosine": CosineSchedule(),
    "variance exploding": NoiseSchedule(torch.ones(60), torch.logspace(-1, 1, 60, dtype=torch.double)),
    "rectified flow": NoiseSchedule(1 - torch.linspace(0.02, 0.98, 60), torch.linspace(0.02, 0.98, 60)),
    "rectified flow from pure noise": RectifiedFlowSchedule(60),
}


@pytest.mark.parametrize("kind", ["beta_tilde", "beta"])
def test_the_posterior_is_a_martingale_over_one_step(kind):
    # x_s is drawn with the variance that the ratio divides by, from any x_t, by predictions that need not be exact
    step = step_between(400, 360, kind)
    noise = BatchNoise((100_000, 2))
    x_t, base, negative = (torch.tensor(x).expand(100_000, 2) for x in ([0.7, -0.4], [0.3, 0.1], [0.9, -0.2]))
    predictions = from_eps(step, x_t, base, negative.unsqueeze(1))
    x_s = step.kernel.mean(x_t, predictions.denoised) + step.kernel.std * noise()
    posterior = TrackedPosterior(FREE)
    log_p = start(posterior, len(x_s), 1)
    ratio = (advance(posterior, log_p, step, x_t, x_s, predictions) - log_p).exp()
    error = float(ratio.std() / len(ratio) ** 0.5)
    assert 0.2 < float(ratio.std()) < 5  # the step tells something
    assert abs(float(ratio.mean()) - 1) < 4 * error


def test_a_ratio_by_another_variance_than_the_noise_has_is_no_martingale():
    # why TrackedPosterior divides by the sampler's variance: by beta_tilde, as the release does, the mean grows by
    # exp(|mu_c - mu|^2 (beta - beta_tilde) / (2 beta_tilde^2)) a step
    step = step_between(3, 2, "beta")
    x_t = torch.zeros(200_000, 1)
    predictions = from_eps(step, x_t, torch.zeros_like(x_t), torch.full((200_000, 1, 1), 0.5))
    mean = step.kernel.mean(x_t, predictions.denoised)
    x_s = mean + step.kernel.std * BatchNoise(x_t.shape)()
    difference = float((step.kernel.mean(x_t, predictions.negatives[:, 0]) - mean)[0].norm())
    grows = math.exp(difference**2 * (step.kernel.variance - step.kernel.beta_tilde) / (2 * step.kernel.beta_tilde**2))
    assert grows > 1.02
    released = ReleasedPosterior(FREE, temperature=1.0, offset=0.0, p_min=0.0, p_max=0.99)
    for posterior, expected in ((TrackedPosterior(FREE), 1.0), (released, grows)):
        log_p = start(posterior, len(x_t), 1)
        ratio = (advance(posterior, log_p, step, x_t, x_s, predictions) - log_p).exp()
        assert float(ratio.mean()) == pytest.approx(expected, abs=4 * float(ratio.std()) / len(ratio) ** 0.5)


@pytest.mark.parametrize("path", sorted(POINTS))
@pytest.mark.parametrize("steps", [3, 7, 60])
def test_for_point_data_the_evidence_is_exact_on_any_grid_and_any_path(path, steps):
    # with one point a condition the reverse kernels are Gaussian, and their ratios a telescope: what remains is the
    # ratio of the two marginals at the last level less that at the first, whatever lies between
    schedule = POINTS[path]
    mixture = GaussianMixture(schedule, [[0.3, -0.2], [-0.5, 0.4]], 0.0)
    predictor = NetworkPairPredictor(mixture.network(0), [mixture.network(1)])
    levels = schedule.levels(steps)[:-1]
    noise = BatchNoise((64, 2), dtype=torch.double)
    x = torch.stack([level.sigma * noise() for level in levels])  # no chain at all
    posterior = TrackedPosterior(FREE)
    log_p = start(posterior, 64, 1)
    for x_t, x_s, t, s in zip(x[:-1], x[1:], levels[:-1], levels[1:], strict=True):
        log_p = advance(posterior, log_p, step_between(t, s), x_t, x_s, predictor.predict(x_t, t))

    def log_ratio(at: int) -> Tensor:
        joint = mixture.log_joint(x[at], levels[at])
        return joint[:, 1] - joint[:, 0]

    expected = log_ratio(-1) - log_ratio(0)
    # far from the bounds; fp64, and the noisiest x_0 of the cosine schedule is 1 / alpha = 20,000 times coarser
    assert 0.1 < expected.abs().max() < 690
    torch.testing.assert_close(log_p.squeeze(1) - math.log(FREE), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", [[700, 650], [700, 300], [20, 19], [1000, 200]])
def test_for_gaussian_data_the_evidence_is_exact_but_for_the_width_of_the_kernel(grid):
    # with data N(m, d^2) the reverse kernel is Gaussian too, but wider than ours, by x0_coef^2 Var(x_0 | x_t): the
    # evidence is overstated by that ratio, which tends to 1 as the step shrinks
    t, s = grid
    d = 0.3
    mixture = GaussianMixture(LINEAR, [[0.6, -0.2], [-0.5, 0.4]], d)
    step = step_between(t, s)
    kernel, alpha, sigma = step.kernel, step.level.alpha, step.level.sigma
    noise = BatchNoise((64, 2), dtype=torch.double)
    x_t = noise()
    base, negative = (mixture.network(label)(x_t, step.level, None) for label in (0, 1))
    x_s = kernel.mean(x_t, base) + 3 * kernel.std * noise()
    here, there = (mixture.log_joint(x, level) for x, level in ((x_t, t), (x_s, s)))
    exact = (there[:, 1] - there[:, 0]) - (here[:, 1] - here[:, 0])
    left_over = d**2 * sigma**2 / (alpha**2 * d**2 + sigma**2)  # Var(x_0 | x_t)
    wider = 1 + kernel.x0_coef**2 * left_over / kernel.variance
    posterior = TrackedPosterior(FREE)
    log_p = start(posterior, 64, 1)
    predictions = Predictions(base, negative.unsqueeze(1))
    moved = (advance(posterior, log_p, step, x_t, x_s, predictions) - log_p).squeeze(1)
    # fp64, of log p = -690
    torch.testing.assert_close(moved, wider * exact, rtol=1e-9, atol=1e-9)
    assert wider > 1
    if t - s == 1:
        assert wider < 1.5


def test_the_inner_product_is_the_difference_of_squares():
    for t, s in ((1000, 999), (500, 480), (100, 50), (2, 1)):
        step = step_between(t, s)
        x_t, x_s, predictions = any_step(step, 2)
        posterior = TrackedPosterior(FREE)
        log_p = start(posterior, 6, 2)
        moved = advance(posterior, log_p, step, x_t, x_s, predictions) - log_p
        x_t, x_s = x_t.double(), x_s.double()
        base, negatives = predictions.denoised.double(), predictions.negatives.double()
        to_base = (x_s - step.kernel.mean(x_t, base)).flatten(1).square().sum(1, keepdim=True)
        to_class = (x_s.unsqueeze(1) - step.kernel.mean(x_t.unsqueeze(1), negatives)).flatten(2).square().sum(2)
        expected = (to_base - to_class) / (2 * step.kernel.variance)
        # fp64, of log p = -690
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)


def test_the_missing_divergence_is_the_factor_of_the_prediction_in_the_mean_by_what_was_not_drawn():
    step = step_between(500, 480)
    x_t, x_s, predictions = any_step(step, 2)
    divergence = torch.linspace(-3, 3, 12, dtype=torch.double).view(6, 2)
    posterior = TrackedPosterior(FREE, temperature=0.5)
    log_p = start(posterior, 6, 2)
    plain = advance(posterior, log_p, step, x_t, x_s, predictions)
    # d mean / d D, written out: alpha_s var_ts / sigma_t^2
    ratio = float(LINEAR.alpha[500] / LINEAR.alpha[480])
    var_ts = float(LINEAR.sigma[500] ** 2 - ratio**2 * LINEAR.sigma[480] ** 2)
    coefficient = float(LINEAR.alpha[480] / LINEAR.sigma[500] ** 2) * var_ts
    with_divergence = replace(predictions, divergence=divergence)
    for eta in (0.0, 0.6, 1.0):
        drawn = step_between(500, 480, eta=eta)
        moved = advance(posterior, log_p, drawn, x_t, x_s, with_divergence) - plain
        torch.testing.assert_close(moved, -0.5 * (1 - eta**2) / 2 * coefficient * divergence, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["beta_tilde", "beta"])
@pytest.mark.parametrize(
    "posterior", [TrackedPosterior(0.3, offset=1.0), TrackedPosterior(0.3, reference="complement"), ReleasedPosterior()]
)
def test_no_evidence_is_taken_at_the_last_step(posterior, kind):
    last = step_between(1, 0, kind)
    log_p = start(posterior, 6, 1)
    assert torch.equal(advance(posterior, log_p, last, *any_step(last)), log_p)


def test_equal_predictions_are_no_evidence():
    step = step_between(500, 480)
    x_t, x_s, predictions = any_step(step)
    base = predictions.denoised
    posterior = TrackedPosterior(0.3)
    log_p = start(posterior, 6, 2)
    same = Predictions(base, torch.stack([base, base], 1))
    assert torch.equal(advance(posterior, log_p, step, x_t, x_s, same), log_p)


def test_the_evidence_is_for_each_image_its_own():
    step = step_between(500, 480)
    x_t, x_s, predictions = any_step(step, 2)
    posterior = TrackedPosterior(0.01)
    together = advance(posterior, start(posterior, 6, 2), step, x_t, x_s, predictions)
    for i in range(6):
        one = slice(i, i + 1)
        of_one = Predictions(predictions.denoised[one], predictions.negatives[one])
        alone = advance(posterior, start(posterior, 1, 2), step, x_t[one], x_s[one], of_one)
        # the sum over an image's numbers may be taken in another order
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-12)


def test_low_precision_states_are_tracked_in_high_precision():
    step = step_between(500, 480)
    x_t, x_s, predictions = any_step(step, 2)
    states = [x.bfloat16() for x in (x_t, x_s, predictions.denoised, predictions.negatives)]
    posterior = TrackedPosterior(0.01)
    log_p = start(posterior, 6, 2)
    low, high = (
        advance(posterior, log_p, step, x_t, x_s, Predictions(base, negatives))
        for x_t, x_s, base, negatives in (states, [x.float() for x in states])
    )
    assert low.dtype == torch.double
    assert torch.equal(low, high)
