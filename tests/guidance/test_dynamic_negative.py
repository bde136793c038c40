"""Dynamic Negative Guidance: its formula, with exact posteriors, and the authors' release beside it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import FOUR, IN_64_D, LINEAR, eps_of, predictions, step_at
from mixture import BatchNoise, GaussianMixture, trajectory

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.interfaces import Predictions
from dng_lightning.posterior import ClassifierPosterior, ReleasedPosterior, TrackedPosterior
from dng_lightning.sampling import Sampler


@pytest.mark.parametrize("priors", [[0.3], [0.1, 0.25], [0.2, 0.3, 1e-6]])
def test_it_pushes_from_each_class_by_its_odds_against_what_is_allowed(priors):
    given, classes = predictions(len(priors)), len(priors)
    dynamic = DynamicNegativeGuidance(1.5, TrackedPosterior(priors))
    guided = dynamic.guide(given, dynamic.start(given.denoised, classes), step_at())
    base, negatives = given.denoised.double().numpy(), given.negatives.double().numpy()
    odds = np.array(priors) / (1 - sum(priors))
    expected = base - 1.5 * sum(odds[k] * (negatives[:, k] - base) for k in range(classes))
    np.testing.assert_allclose(guided.denoised, expected, rtol=0, atol=2e-6)  # fp32 numbers up to 4
    np.testing.assert_allclose(guided.scale, np.full(5, 1.5 * odds.sum()), rtol=1e-6)
    np.testing.assert_allclose(guided.posterior, np.tile(priors, (5, 1)), rtol=1e-12)


def test_it_pushes_each_image_by_its_own_posterior():
    given = predictions(1)
    log_p = torch.tensor([0.5, 0.01, 1e-9, 0.99, 0.2], dtype=torch.double).log().unsqueeze(1)
    guided = DynamicNegativeGuidance().guide(given, log_p, step_at())
    odds = (log_p.exp() / (1 - log_p.exp())).view(5, 1, 1, 1)
    expected = given.denoised - odds * (given.negatives[:, 0] - given.denoised)
    # odds of 99 times differences of up to .5, in fp32
    torch.testing.assert_close(guided.denoised.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mixture", [FOUR, IN_64_D], ids=["2-D", "64-D"])
def test_exact_predictions_and_posteriors_guide_to_the_exact_prediction_of_what_is_allowed(mixture):
    # grad log p(x | not c) = grad log p(x) - sum_k odds_k (grad log p(x | c_k) - grad log p(x)), at any level
    allowed = GaussianMixture(LINEAR, mixture.means[[1]].tolist(), 0.3)
    left_out = [0, 2, 3]
    predictor = mixture.shared(left_out)
    for t in (900, 400, 100):
        x_t = 1.5 * BatchNoise((256, mixture.dimensions), seed=t, dtype=torch.double)()
        log_p = mixture.posterior(x_t, t, left_out).log()
        near = log_p.logsumexp(1) < math.log(0.99)  # beyond it fp32 odds cancel
        given = predictor.predict(x_t, LINEAR.level(t))
        guided = DynamicNegativeGuidance(posterior=TrackedPosterior(0.2)).guide(given, log_p, step_at(t, t - 10))
        expected = allowed.denoised(x_t, t)
        assert near.sum() > 50
        # odds of up to 100 in fp32 times differences of eps of up to 10
        torch.testing.assert_close(
            eps_of(guided.denoised, x_t, t)[near], eps_of(expected, x_t, t)[near], rtol=0, atol=1e-4
        )


# --- with a classifier's posterior ---


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("forbidden", [[2], [0, 2, 3]], ids=["one class", "three classes"])
def test_with_a_classifier_it_goes_by_the_posterior_that_the_predictions_carry(forbidden, scale):
    x_t, level = 1.5 * BatchNoise((256, 2))(), LINEAR.level(400)
    oracle = DynamicNegativeGuidance(scale, ClassifierPosterior(p_max=0.4))
    given = FOUR.predictor(oracle, forbidden).predict(x_t, level, oracle.needs())
    log_p = given.log_posterior
    assert log_p is not None
    assert 20 < (log_p.logsumexp(1) < math.log(0.4)).sum() < 236  # both sides of p_max
    log_p = log_p - (log_p.logsumexp(1, keepdim=True) - math.log(0.4)).clamp(min=0)
    step = step_at(400, 390)
    guided, expected = oracle.guide(given, None, step), DynamicNegativeGuidance(scale).guide(given, log_p, step)
    assert torch.equal(guided.denoised, expected.denoised)
    assert torch.equal(guided.scale, expected.scale)
    assert guided.posterior is not None
    torch.testing.assert_close(guided.posterior, log_p.exp(), rtol=0, atol=1e-12)


def test_p_max_of_a_classifier_keeps_the_proportions_of_the_classes_and_bounds_the_push():
    log_p = torch.tensor([[0.6, 0.3], [0.4, 0.1], [0.0, 1.0], [0.0, 0.0]]).log()
    negatives = torch.tensor([[[1.0], [10.0]]]).expand(4, 2, 1)
    guided = DynamicNegativeGuidance(2.0, ClassifierPosterior(p_max=0.75)).guide(
        Predictions(torch.zeros(4, 1), negatives, log_posterior=log_p), None, step_at()
    )
    torch.testing.assert_close(guided.posterior, torch.tensor([[0.5, 0.25], [0.4, 0.1], [0.0, 0.75], [0.0, 0.0]]))
    # twice the odds: .5 and .25 against .25; .4 and .1 against .5; .75 against .25
    torch.testing.assert_close(guided.scale, torch.tensor([6.0, 2.0, 6.0, 0.0]))
    torch.testing.assert_close(guided.denoised, -torch.tensor([[4.0 + 20], [1.6 + 4], [60], [0]]))


def test_without_a_classifier_its_posterior_says_what_is_missing():
    oracle = DynamicNegativeGuidance(posterior=ClassifierPosterior())
    with pytest.raises(SettingError, match="the predictions have no log_posterior"):
        oracle.guide(replace(predictions(1), log_posterior=None), None, step_at())


# --- the authors' release ---


@pytest.mark.parametrize(
    ("prior", "temperature", "offset", "p_min", "p_max", "scale"),
    [(0.01, 0.2, 2e-4, 1e-6, 0.8, 1.0), (0.05, 0.1, 1e-4, 1e-6, 0.99, 1.0), (0.5, 1.0, 0.0, 1e-6, 0.99, 1.0)],
    ids=["README", "the other one", "as the theory"],
)
def test_it_follows_the_released_update_over_a_whole_trajectory(prior, temperature, offset, p_min, p_max, scale):
    """The released update in fp64 and probability space, index t from 999 to 0, beside the package's own run."""
    guidance = DynamicNegativeGuidance(scale, ReleasedPosterior(prior, temperature, offset, p_min, p_max))
    run = trajectory(FOUR, guidance, [0], Sampler(1000, variance="beta"), BatchNoise((128, 2), dtype=torch.double))

    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.double)
    a = 1 - beta
    a_bar = a.cumprod(0)
    noise = BatchNoise((128, 2), dtype=torch.double)
    x, p = LINEAR.sigma[-1] * noise(), torch.full((128,), prior, dtype=torch.double)
    whole, left = FOUR.network(FOUR.null_class), FOUR.network(0)
    for t in range(999, -1, -1):
        level = LINEAR.level(t + 1)
        eps, eps_c = (eps_of(network(x, level, None), x, level) for network in (whole, left))
        # the package's odds are fp32, and 1,000 steps carry their rounding on
        torch.testing.assert_close(run.posterior[999 - t, :, 0], p, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(run.x[999 - t], x, rtol=0, atol=1e-5)
        guided = eps - (scale * p / (1 - p)).unsqueeze(1) * (eps_c - eps)
        new = (x - beta[t] / (1 - a_bar[t]).sqrt() * guided) / a[t].sqrt()
        if t > 0:
            new = new + beta[t].sqrt() * noise()
        variance = (1 - a_bar[max(t - 1, 0)]) / (1 - a_bar[t]) * beta[t]
        mean, mean_c = ((x - beta[t] / (1 - a_bar[t]).sqrt() * e) / a[t].sqrt() for e in (eps, eps_c))
        distance = (new - mean_c).square().sum(1) - (new - mean).square().sum(1)
        p = (p * ((-temperature * distance + offset) / (2 * variance)).exp()).clamp(p_min, p_max)
        x = new
    torch.testing.assert_close(run.x_0, x, rtol=0, atol=1e-5)
    assert len(p.unique()) > 2  # not all at a bound: the comparison was about something


# --- errors ---


@pytest.mark.parametrize(
    "setting",
    [{"prior": 0.0}, {"prior": 0.5, "p_max": 0.4}, {"temperature": -1.0}, {"offset": math.inf}, {"p_min": 0.2}],
)
@pytest.mark.parametrize("posterior", [TrackedPosterior, ReleasedPosterior])
def test_its_posteriors_refuse_settings_out_of_range(posterior, setting):
    with pytest.raises(SettingError):
        posterior(**setting)


@pytest.mark.parametrize("p_max", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_classifiers_posterior_refuses_a_p_max_that_bounds_nothing(p_max):
    with pytest.raises(SettingError, match=r"p_max must be in \(0, 1\)"):
        ClassifierPosterior(p_max=p_max)


@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan])
def test_skip_below_is_a_probability_below_1(bad):
    with pytest.raises(SettingError, match=r"skip_below must be in \[0, 1\)"):
        DynamicNegativeGuidance(skip_below=bad)
