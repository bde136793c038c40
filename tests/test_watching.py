"""Guidances that look on see what they would see alone, and the images stay as they are."""

import pytest
import torch
from dng_lightning.calibration import CalibratedTracker
from dng_lightning.guidance.watching import Evidence, Watching
from mixture import BatchNoise, GaussianMixture, Trajectory, trajectory

from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    PositiveAndNegative,
    Unguided,
)
from dng_lightning.sampling import Sampler
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
FOUR = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], [0.2, 0.3, 0.4, 0.5])
CALIBRATION = [[100.0, 1.5, 0.5], [800.0, 1.1, -1.0]]
SETTINGS = [
    {"prior": 0.25},
    {"prior": 0.1, "temperature": 0.5, "offset": 1e-3, "floor": 1e-3, "cap": 0.8},
    {"prior": 0.1, "offset": 1e-4, "parity": True},
    {"calibration": CALIBRATION, "cap": 0.9},
]
SAMPLERS = {"ancestral": Sampler(40), "larger variance, clipped": Sampler(40, variance="beta", clip=1.0)}


def run(guidance: Guidance, forbidden: list[int], sampler: Sampler) -> Trajectory:
    return trajectory(FOUR, guidance, forbidden, sampler, BatchNoise((64, 2)))  # full SIMD lanes, as in test_guidance


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("forbidden", [[0], [2, 0]], ids=["one class", "two classes"])
def test_watching_gives_the_unguided_images_and_what_each_guidance_would_say_of_them_in_turn(forbidden, sampler):
    # neither a scale nor the push that a guidance would leave out matters where nothing is pushed
    watchers = [
        DynamicNegativeGuidance(scale, own_push=1.0 if "parity" in settings else own_push, **settings)
        for settings, scale, own_push in zip(SETTINGS, (0.0, 1.0, 5.0, 2.0), (0.0, 0.5, 1.0, 0.0), strict=True)
    ]
    watched = run(Watching(watchers), forbidden, sampler)
    assert torch.equal(watched.x, run(Unguided(), forbidden, sampler).x)
    assert not watched.scale.any()
    alone = [run(DynamicNegativeGuidance(0.0, **settings), forbidden, sampler).posterior for settings in SETTINGS]
    assert torch.equal(watched.posterior, torch.cat(alone, 2))
    for one in range(len(alone)):
        assert all((alone[one] - other).abs().max() > 0.01 for other in alone[:one])


def test_with_a_wanted_class_the_trackers_look_on_at_its_sharpened_images():
    """Classifier-free guidance draws them, and each tracker sees both branches as its own guidance has them."""

    def of_class_1(guidance: Guidance) -> Trajectory:
        return trajectory(FOUR, guidance, [0], Sampler(20), BatchNoise((64, 2)), 1)

    free = ClassifierFreeGuidance(2.0)
    idle = [PositiveAndNegative(DynamicNegativeGuidance(0.0, prior), 2.0) for prior in (0.1, 0.3)]
    idle.append(PositiveAndNegative(DynamicNegativeGuidance(0.0, 0.1), 2.0, independent=True))
    watched = of_class_1(Watching(idle, free))
    assert torch.equal(watched.x, of_class_1(free).x)
    assert (watched.scale == 2).all()
    for column, guidance in zip(watched.posterior.unbind(2), idle, strict=True):
        alone = of_class_1(guidance)
        torch.testing.assert_close(alone.x, watched.x, rtol=0, atol=1e-6)
        torch.testing.assert_close(column, alone.posterior[..., 0], rtol=1e-3, atol=1e-6)


def test_the_order_of_those_who_watch_is_the_order_of_what_they_say():
    watchers = [DynamicNegativeGuidance(prior=0.3), DynamicNegativeGuidance(prior=0.01)]
    there, back = (run(Watching(order), [0], Sampler(10)).posterior for order in (watchers, watchers[::-1]))
    assert torch.equal(there, back.flip(2))
    torch.testing.assert_close(there[0], torch.tensor([0.3, 0.01]).double().expand(64, 2))


@pytest.mark.filterwarnings("ignore:a posterior tracked along a deterministic sampler")
def test_without_noise_the_divergence_is_told_to_those_who_ask_for_probes():
    """One that does not is as biased as it would be alone."""
    deterministic = Sampler(20, eta=0.0)
    watchers = [DynamicNegativeGuidance(0.0, 0.2, divergence=probes) for probes in (0, 1)]
    watched = run(Watching(watchers), [0], deterministic).posterior
    alone = torch.cat([run(watcher, [0], deterministic).posterior for watcher in watchers], 2)
    torch.testing.assert_close(watched, alone, rtol=1e-6, atol=1e-9)
    assert (alone[-1, :, 0] - alone[-1, :, 1]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_evidence_is_what_a_calibrated_tracker_gathers_of_unguided_images(sampler):
    seen = run(Evidence(), [2, 0], sampler)
    assert torch.equal(seen.x, run(Unguided(), [2, 0], sampler).x)
    assert not seen.scale.any()
    assert not seen.posterior[0].any()
    assert seen.posterior.abs().max() > 10
    tracker = CalibratedTracker(CALIBRATION, cap=0.9)
    said = run(DynamicNegativeGuidance(0.0, cap=0.9, calibration=CALIBRATION), [2, 0], sampler).posterior
    for log_ratio, level, p in zip(seen.posterior, seen.levels[:-1], said, strict=True):
        assert torch.equal(tracker.log_posterior(log_ratio, level).exp(), p)
