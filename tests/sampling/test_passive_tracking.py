"""Posteriors that look at another guidance's images see what they would see alone, and the images stay as they are."""

from collections.abc import Sequence

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, Trajectory, trajectory
from torch import Tensor

from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    PositiveAndNegative,
    Unguided,
)
from dng_lightning.posterior import CalibratedPosterior, Posterior, ReleasedPosterior, TrackedPosterior
from dng_lightning.sampling import PassiveTracking, Sampler, sample
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
FOUR = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], [0.2, 0.3, 0.4, 0.5])
CALIBRATION = [[-8.0, 1.1, -1.0], [4.0, 1.5, 0.5]]
POSTERIORS = [
    TrackedPosterior(prior=0.25),
    TrackedPosterior(prior=0.1, temperature=0.5, offset=1e-3, p_min=1e-3, p_max=0.8),
    ReleasedPosterior(prior=0.1, offset=1e-4),
    CalibratedPosterior(CALIBRATION, p_max=0.9),
]
SAMPLERS = {"ancestral": Sampler(40), "larger variance, clipped": Sampler(40, variance="beta", clip=1.0)}


def run(guidance: Guidance, forbidden: list[int], sampler: Sampler, class_label: int | None = None) -> Trajectory:
    noise = BatchNoise((64, 2))  # full SIMD lanes, as in tests/guidance
    return trajectory(FOUR, guidance, forbidden, sampler, noise, class_label)


def tracked(
    posteriors: Sequence[Posterior],
    forbidden: list[int],
    sampler: Sampler,
    guidance: Guidance | None = None,
    class_label: int | None = None,
) -> tuple[Tensor, PassiveTracking]:
    """x_0 of 64 images that ``guidance`` draws, and what was seen of them."""
    guidance, noise = guidance or Unguided(), BatchNoise((64, 2))
    tracking = PassiveTracking(posteriors, getattr(guidance, "scale", 1.0))
    labels = None if class_label is None else torch.full((64,), class_label)
    predictor = FOUR.predictor(guidance, forbidden, labels)
    return sample(predictor, guidance, LINEAR, noise, sampler, [tracking]), tracking


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("forbidden", [[0], [2, 0]], ids=["one class", "two classes"])
def test_each_posterior_says_what_it_would_say_alone(forbidden: list[int], sampler: Sampler):
    """The push that a guidance would leave out does not matter where nothing is pushed."""
    other_weights = [
        TrackedPosterior(prior=0.25, guidance_shift_weight=0.0),
        *POSTERIORS[1:3],
        CalibratedPosterior(CALIBRATION, p_max=0.9, guidance_shift_weight=0.5),
    ]
    x_0, tracking = tracked(other_weights, forbidden, sampler)
    assert torch.equal(x_0, run(Unguided(), forbidden, sampler).x_0)
    alone = [run(DynamicNegativeGuidance(0.0, posterior), forbidden, sampler).posterior for posterior in POSTERIORS]
    assert tracking.log_prob.shape == (64, 40, len(POSTERIORS), len(forbidden))
    assert [level.timestep for level in tracking.levels] == [level.timestep for level in LINEAR.levels(40)[:-1]]
    for number, expected in enumerate(alone):
        torch.testing.assert_close(tracking.log_prob[:, :, number].exp(), expected.transpose(0, 1), rtol=1e-6, atol=0)
        assert all((expected - other).abs().max() > 0.01 for other in alone[:number])


def test_with_a_wanted_class_they_look_at_its_sharpened_images():
    """Classifier-free guidance draws them, and each posterior sees both branches as its own guidance has them."""
    posteriors, free = [TrackedPosterior(prior) for prior in (0.1, 0.3)], ClassifierFreeGuidance(2.0)
    x_0, tracking = tracked(posteriors, [0], Sampler(20), free, 1)
    assert torch.equal(x_0, run(free, [0], Sampler(20), 1).x_0)
    for number, posterior in enumerate(posteriors):
        idle = PositiveAndNegative(DynamicNegativeGuidance(0.0, posterior), 2.0)
        alone = run(idle, [0], Sampler(20), 1)
        torch.testing.assert_close(alone.x_0, x_0, rtol=0, atol=1e-6)
        seen = tracking.log_prob[:, :, number].exp()
        torch.testing.assert_close(seen, alone.posterior.transpose(0, 1), rtol=1e-3, atol=1e-6)


def test_the_order_of_the_posteriors_is_that_of_what_they_say():
    posteriors = [TrackedPosterior(0.3), TrackedPosterior(0.01)]
    there, back = (tracked(order, [0], Sampler(10))[1].log_prob for order in (posteriors, posteriors[::-1]))
    assert torch.equal(there, back.flip(2))
    torch.testing.assert_close(there[:, 0, :, 0].exp(), torch.tensor([0.3, 0.01]).to(there).expand(64, 2))


@pytest.mark.filterwarnings("ignore:a posterior tracked")
def test_without_noise_those_who_ask_for_probes_see_the_divergence():
    """One that does not is as biased as it would be alone."""
    deterministic = Sampler(20, eta=0.0)
    posteriors = [TrackedPosterior(0.2, divergence=probes) for probes in (0, 1)]
    seen = tracked(posteriors, [0], deterministic)[1].log_prob.exp()
    alone = [run(DynamicNegativeGuidance(0.0, posterior), [0], deterministic).posterior for posterior in posteriors]
    for number, expected in enumerate(alone):
        torch.testing.assert_close(seen[:, :, number], expected.transpose(0, 1), rtol=1e-6, atol=1e-9)
    assert (alone[0][-1] - alone[1][-1]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_the_state_of_a_calibrated_posterior_is_the_evidence(sampler: Sampler):
    posterior = CalibratedPosterior(CALIBRATION, p_max=0.9)
    x_0, tracking = tracked([posterior], [2, 0], sampler)
    assert torch.equal(x_0, run(Unguided(), [2, 0], sampler).x_0)
    log_ratio = tracking.state(0)
    assert not log_ratio[:, 0].any()
    assert log_ratio.abs().max() > 10
    for place, level in enumerate(tracking.levels):
        assert torch.equal(posterior.read(log_ratio[:, place], level), tracking.log_prob[:, place, 0])


def test_a_recorder_starts_anew_with_each_chain():
    tracking = PassiveTracking(POSTERIORS)
    for _ in range(2):
        sample(FOUR.predictor(Unguided(), [0]), Unguided(), LINEAR, BatchNoise((8, 2)), Sampler(5), [tracking])
    assert tracking.log_prob.shape == (8, 5, len(POSTERIORS), 1)
