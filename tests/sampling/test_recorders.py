"""What is noted along a chain leaves the images as they are, and is what the guidance itself would say.

What several posteriors see together, and of classifier-free guidance's images, is in test_passive_tracking.py.
"""

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, trajectory

from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    Unguided,
)
from dng_lightning.posterior import (
    CalibratedPosterior,
    ClassifierPosterior,
    ConstantPosterior,
    ReleasedPosterior,
    TrackedPosterior,
)
from dng_lightning.sampling import PassiveTracking, Sampler, Trajectories, WithClassifier, sample
from dng_lightning.schedule import LinearSchedule, NoiseSchedule, RectifiedFlowSchedule

LINEAR = LinearSchedule()
MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
CALIBRATION = [[-3.0, 1.1, -1.0], [4.0, 1.5, 0.5]]
POSTERIORS = [
    TrackedPosterior(prior=0.25),
    TrackedPosterior(prior=0.1, temperature=0.5, offset=1e-3, p_min=1e-3, p_max=0.8, guidance_shift_weight=0.5),
    TrackedPosterior(prior=0.2, reference="complement"),
    ReleasedPosterior(prior=0.1, offset=1e-4),
    CalibratedPosterior(CALIBRATION, p_max=0.9),
    ClassifierPosterior(p_max=0.9),
    ConstantPosterior(0.15),
]
SAMPLERS = {
    "ancestral": Sampler(40),
    "larger variance, clipped": Sampler(40, variance="beta", clip=1.0),
    "eta .5": Sampler(40, eta=0.5),
}


def four(schedule: NoiseSchedule = LINEAR) -> GaussianMixture:
    return GaussianMixture(schedule, MEANS, [0.2, 0.3, 0.4, 0.5])


def draw(
    mixture: GaussianMixture, guidance: Guidance, forbidden: list[int], sampler: Sampler, tracking: PassiveTracking
) -> tuple[torch.Tensor, int]:
    """Images with a recorder, and their NFE; 64 images keep SIMD lanes full, whatever is evaluated."""
    predictor = WithClassifier(mixture.shared(forbidden), mixture.log_posterior, forbidden)
    x_0 = sample(predictor, guidance, mixture.schedule, BatchNoise((64, 2)), sampler, [tracking])
    return x_0, predictor.nfe


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("forbidden", [[0], [2, 0]], ids=["one class", "two classes"])
@pytest.mark.parametrize("schedule", [LINEAR, RectifiedFlowSchedule()], ids=["linear", "rectified flow"])
def test_unguided_images_stay_as_they_are_and_each_posterior_is_the_guidances_own_at_scale_0(
    schedule, forbidden, sampler
):
    mixture, tracking = four(schedule), PassiveTracking(POSTERIORS)
    x_0, nfe = draw(mixture, Unguided(), forbidden, sampler, tracking)
    assert torch.equal(x_0, trajectory(mixture, Unguided(), forbidden, sampler, BatchNoise((64, 2))).x_0)
    assert nfe == 64 * 40 * (1 + len(forbidden))
    assert tracking.log_prob.shape == (64, 40, len(POSTERIORS), len(forbidden))
    assert tracking.levels == schedule.levels(40)[:-1]
    for number, posterior in enumerate(POSTERIORS):
        idle = DynamicNegativeGuidance(0.0, posterior)
        alone = trajectory(mixture, idle, forbidden, sampler, BatchNoise((64, 2)))
        assert torch.equal(tracking.log_prob[:, :, number].transpose(0, 1).exp(), alone.posterior)


@pytest.mark.parametrize(
    "guidance",
    [
        NegativePrompting(0.5),
        DynamicNegativeGuidance(posterior=TrackedPosterior(0.2)),
        LimitedInterval(NegativePrompting(0.5), 0.5, 5.0),
    ],
    ids=lambda guidance: type(guidance).__name__,
)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_guided_images_stay_as_they_are(guidance, sampler):
    mixture = four()
    x_0, _ = draw(mixture, guidance, [0, 2], sampler, PassiveTracking(POSTERIORS))
    assert torch.equal(x_0, trajectory(mixture, guidance, [0, 2], sampler, BatchNoise((64, 2))).x_0)


def test_a_recorder_forgets_the_last_chain():
    tracking, seen, mixture = PassiveTracking([TrackedPosterior(0.2)]), Trajectories(), four()
    for steps in (10, 5):
        predictor, guidance = mixture.shared([0]), DynamicNegativeGuidance()
        sample(predictor, guidance, LINEAR, BatchNoise((4, 2)), Sampler(steps), [tracking, seen])
        assert tracking.log_prob.shape == (4, steps, 1, 1)
        assert seen.levels == tracking.levels == LINEAR.levels(steps)[:-1]
        assert seen.scale.shape == (4, steps)
        assert seen.posterior.shape == (4, steps, 1)


def test_trajectories_have_the_scale_and_the_posterior_of_the_guidance():
    mixture, guidance, seen = four(), DynamicNegativeGuidance(2.0, TrackedPosterior(0.2)), Trajectories()
    sample(mixture.shared([0, 2]), guidance, LINEAR, BatchNoise((64, 2)), Sampler(10), [seen])
    run = trajectory(mixture, guidance, [0, 2], Sampler(10), BatchNoise((64, 2)))
    assert torch.equal(seen.scale, run.scale.transpose(0, 1))
    assert torch.equal(seen.posterior, run.posterior.transpose(0, 1).float())
    sample(mixture.shared([0, 2]), NegativePrompting(2.0), LINEAR, BatchNoise((64, 2)), Sampler(10), [seen])
    assert seen.posterior is None
    assert (seen.scale == 2).all()
