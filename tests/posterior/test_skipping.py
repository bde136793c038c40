"""Conditions that are not evaluated: what posteriors make of them, and what skipping the unlikely ones costs."""

import math
from dataclasses import replace

import pytest
import torch
from mixture import BatchNoise, GaussianMixture
from tracking import LINEAR, advance, any_step, start, step_between

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicGeoGuide, DynamicNegativeGuidance, LimitedInterval
from dng_lightning.posterior import (
    CalibratedPosterior,
    ClassifierPosterior,
    ConstantPosterior,
    ObserverPosterior,
    Posterior,
    ProbePosterior,
    ReleasedPosterior,
    TrackedPosterior,
)
from dng_lightning.sampling import Sampler, Trajectories, sample
from dng_lightning.schedule import NoiseSchedule, RectifiedFlowSchedule

MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
FLOW = RectifiedFlowSchedule()
N = 4096
REMEMBERING: dict[str, Posterior] = {
    "tracked": TrackedPosterior(0.2),
    "tracked, with an offset": TrackedPosterior(0.2, offset=1e-3, p_min=1e-4),
    "tracked against the complement": TrackedPosterior(0.2, reference="complement"),
    "released": ReleasedPosterior(0.2, offset=1e-3),
    "calibrated": CalibratedPosterior([[0, 1.2, -1.5]]),
}
each_posterior = pytest.mark.parametrize("posterior", REMEMBERING.values(), ids=REMEMBERING)


# --- inactive conditions ---


@each_posterior
def test_conditions_that_are_not_active_keep_their_state_and_have_no_probability(posterior):
    step, active = step_between(500, 480), torch.tensor([[1, 0], [0, 1], [0, 0], [1, 1], [1, 0], [0, 1]]).bool()
    x_t, x_s, predictions = any_step(step, 2)
    base = predictions.denoised.unsqueeze(1)
    negatives = torch.where(active.view(6, 2, 1, 1, 1), predictions.negatives, base)
    predictions = replace(predictions, negatives=negatives, active=active)
    state = start(posterior, 6, 2)
    new = advance(posterior, state, step, x_t, x_s, predictions)
    assert torch.equal(new[~active], state[~active])
    assert (new[active] != state[active]).all()
    p = posterior.log_prob(predictions, new, step).exp()
    assert (p[~active] == 0).all()
    assert (p[active] > 0).all()
    # the others are what they would be without it
    alone = start(posterior, 6, 1)
    of_one = replace(predictions, negatives=negatives[:, :1], active=active[:, :1])
    only_the_first = active[:, 0] & ~active[:, 1]
    found = advance(posterior, alone, step, x_t, x_s, of_one)
    torch.testing.assert_close(found[only_the_first, 0], new[only_the_first, 0], rtol=1e-12, atol=1e-12)


@each_posterior
def test_a_state_is_raised_to_a_lower_bound_and_left_where_there_is_none(posterior):
    """As an observer does who sees a condition emerge of which nothing was tracked yet."""
    step, state = step_between(500, 480), start(posterior, 4, 2)
    bound = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.01, 0.0], [0.3, 0.3]])
    active = bound > 0
    new = posterior.at_least(state, bound, step.level, active)
    _, _, predictions = any_step(step, 2)
    p = posterior.log_prob(replace(predictions, active=active), new, step).exp()
    before = posterior.log_prob(replace(predictions, active=active), state, step).exp()
    expected = torch.where(active, before.maximum(bound.double()), before)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-12)
    assert torch.equal(new[~active], state[~active])
    assert torch.equal(new[1:3], state[1:3])


@each_posterior
def test_a_lower_bound_is_kept_below_p_max(posterior):
    state, level = start(posterior, 1, 2), LINEAR.level(500)
    new = posterior.at_least(state, torch.ones(1, 2), level, torch.ones(1, 2, dtype=torch.bool))
    _, _, predictions = any_step(step_between(500, 480), 2)
    assert posterior.log_prob(predictions, new, step_between(500, 480)).exp().sum() <= posterior.p_max * (1 + 1e-12)


# --- skip_below ---

# each with the exact posterior of an exact mixture: half of it is forbidden, then two classes of .1 and .2
HALF = {
    "tracked": TrackedPosterior(0.5),
    "calibrated": CalibratedPosterior([[0, 2.0, 0.0]]),
    "classifier": ClassifierPosterior(),
    "probe": ProbePosterior(),
}
TWO_OF_FOUR = {
    "tracked": TrackedPosterior([0.1, 0.2]),
    "calibrated": CalibratedPosterior([[0, 1.18, -1.73]]),
    "classifier": ClassifierPosterior(),
    "probe": ProbePosterior(),
}


def leak_and_nfe(
    mixture: GaussianMixture, forbidden: list[int], guidance: DynamicNegativeGuidance, sampler: Sampler
) -> tuple[float, float]:
    """The share of forbidden images, and the evaluations an image and step."""
    predictor = mixture.predictor(guidance, forbidden)
    x_0 = sample(predictor, guidance, mixture.schedule, BatchNoise((N, 2)), sampler)
    bad = torch.isin(mixture.nearest(x_0), torch.tensor(forbidden))
    return float(bad.double().mean()), predictor.nfe / (N * sampler.steps)


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("schedule", [LINEAR, FLOW], ids=["linear", "rectified flow from pure noise"])
@pytest.mark.parametrize("classes", [1, 2])
def test_skipping_the_unlikely_leaves_at_most_about_the_threshold_more_at_less_cost(
    classes, schedule: NoiseSchedule, name
):
    if classes == 1:
        mixture, forbidden, posterior = GaussianMixture(schedule, MEANS[:2], 0.3), [0], HALF[name]
    else:
        mixture = GaussianMixture(schedule, MEANS, 0.3, [0.1, 0.4, 0.2, 0.3])
        forbidden, posterior = [0, 2], TWO_OF_FOUR[name]
    leak, nfe = leak_and_nfe(mixture, forbidden, DynamicNegativeGuidance(posterior=posterior), Sampler(50))
    assert nfe == 1 + classes
    costs = [nfe]
    for threshold in (0.01, 0.05):
        guidance = DynamicNegativeGuidance(posterior=posterior, skip_below=threshold)
        more, less = leak_and_nfe(mixture, forbidden, guidance, Sampler(50))
        # optional stopping: at most the threshold for each class; 4 standard errors of each share
        error = 4 * math.sqrt((leak + threshold) / N)
        assert more <= leak + classes * threshold + error
        costs.append(less)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.9 * costs[0]


@pytest.mark.parametrize("name", HALF)
def test_a_threshold_of_0_skips_nothing_and_one_above_all_posteriors_everything(name):
    mixture = GaussianMixture(LINEAR, MEANS[:2], 0.3)
    with_none = DynamicNegativeGuidance(posterior=HALF[name])
    predictor, plain = (mixture.predictor(with_none, [0]) for _ in range(2))
    images = sample(predictor, replace(with_none, skip_below=0.0), LINEAR, BatchNoise((64, 2)), Sampler(20))
    assert torch.equal(images, sample(plain, with_none, LINEAR, BatchNoise((64, 2)), Sampler(20)))
    assert predictor.nfe == 64 * 20 * 2
    low = replace(HALF[name], p_max=0.9) if name != "tracked" else replace(HALF[name], p_max=0.9, prior=0.3)
    seen, predictor = Trajectories(), mixture.predictor(with_none, [0])
    guidance = DynamicNegativeGuidance(posterior=low, skip_below=0.95)
    sample(predictor, guidance, LINEAR, BatchNoise((64, 2)), Sampler(20), [seen])
    assert predictor.nfe == 64 * 20
    assert not seen.scale.any()
    assert not seen.posterior.any()


def test_a_tracked_posterior_that_is_skipped_stays_where_it_is():
    guidance = DynamicNegativeGuidance(0.0, TrackedPosterior(0.5, offset=1e-4), skip_below=0.05)  # no push: half stay
    predictor, seen = GaussianMixture(LINEAR, MEANS[:2], 0.3).shared([0]), []

    class Noting(Trajectories):
        def record(self, step, x_t, x_s, predictions, guided):
            seen.append(predictions.active)

    sample(predictor, guidance, LINEAR, BatchNoise((256, 2)), Sampler(50), [Noting()])
    active = torch.stack(seen).squeeze(2)
    assert active[0].all()
    assert (active[1:] <= active[:-1]).all()  # once skipped, always skipped
    assert 0.2 < float(active[-1].double().mean()) < 0.8
    assert predictor.nfe == 50 * 256 + int(active.sum())


@pytest.mark.parametrize(
    "guidance",
    [
        DynamicGeoGuide(posterior=TrackedPosterior(0.5), skip_below=0.05),
        LimitedInterval(DynamicNegativeGuidance(posterior=TrackedPosterior(0.5), skip_below=0.05), 0.1, 20.0),
        DynamicNegativeGuidance(
            posterior=ObserverPosterior(TrackedPosterior(0.5), observe_steps=[0], threshold=0.0), skip_below=0.05
        ),
        DynamicNegativeGuidance(
            posterior=ObserverPosterior(ClassifierPosterior(), observe_steps=[0], threshold=0.0), skip_below=0.05
        ),
    ],
    ids=["DynamicGeoGuide", "LimitedInterval", "tracked by an observer's start", "classifier after an observer"],
)
def test_whatever_is_around_it_what_is_unlikely_is_skipped(guidance):
    mixture = GaussianMixture(LINEAR, MEANS[:2], 0.3)
    predictor = mixture.predictor(guidance, [0])
    x_0 = sample(predictor, guidance, LINEAR, BatchNoise((256, 2)), Sampler(50))
    assert x_0.isfinite().all()
    assert 1.05 < predictor.nfe / (256 * 50) < 1.95


@pytest.mark.parametrize("threshold", [-0.1, 1.0, math.nan])
@pytest.mark.parametrize("method", [DynamicNegativeGuidance, DynamicGeoGuide])
def test_a_threshold_out_of_its_range_is_refused(method, threshold):
    with pytest.raises(SettingError, match=r"skip_below must be in \[0, 1\)"):
        method(skip_below=threshold)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, math.nan])
def test_a_constant_posterior_out_of_its_range_is_refused(p):
    with pytest.raises(SettingError, match=r"p must be in \(0, 1\)"):
        ConstantPosterior(p)


def test_constant_posteriors_that_leave_nothing_allowed_are_refused():
    with pytest.raises(SettingError, match=r"of 2 forbidden conditions must sum to less than 1; got 0\.5 for each"):
        start(ConstantPosterior(0.5), 4, 2)
    assert start(ConstantPosterior(0.49), 4, 2).shape == (4, 2)
