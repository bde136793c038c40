"""Chains that are weighed and resampled: exact removal on mixtures as their number grows."""

import math

import pytest
import torch
from mixture import GaussianMixture

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, Unguided
from dng_lightning.posterior import ProbePosterior, TrackedPosterior
from dng_lightning.sampling import ImageNoise, Particles, Sampler, Trajectories, sample
from dng_lightning.sampling.particles import systematic
from dng_lightning.schedule import LinearSchedule

MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
MIXTURE = GaussianMixture(LinearSchedule(), MEANS, 0.3, [0.4, 0.1, 0.2, 0.3])
TRUTH = torch.tensor([0.0, 1 / 6, 2 / 6, 3 / 6])  # of the modes, without the first
N, STEPS = 1200, Sampler(50)


def draw(guidance: Guidance, seeds: range = range(N)) -> torch.Tensor:
    predictor = MIXTURE.predictor(guidance, [0])
    return sample(predictor, guidance, MIXTURE.schedule, ImageNoise(seeds, (2,)), STEPS)


def distance(x_0: torch.Tensor) -> float:
    """Total variation of the modes' shares from the truth."""
    return float((MIXTURE.nearest(x_0).bincount(minlength=4) / len(x_0) - TRUTH).abs().sum() / 2)


def test_removal_by_the_exact_posterior_is_exact_as_the_particles_grow():
    forbidden = []
    for particles in (1, 4, 16):
        x_0 = draw(Particles(posterior=ProbePosterior(), particles=particles))
        forbidden.append(float((MIXTURE.nearest(x_0) == 0).float().mean()))
    error = 4 * math.sqrt(0.4 * 0.6 / N)
    assert abs(forbidden[0] - 0.4) < error  # one particle is not chosen from anything
    assert forbidden[1] < 0.4**2
    assert forbidden[2] < 0.02
    # the kept modes: their shares, their means, and the standard deviations that so few steps give without guidance
    assert distance(x_0) < 0.04
    plain = draw(Unguided())
    for label in (1, 2, 3):
        own, theirs = (x[MIXTURE.nearest(x) == label].double() for x in (x_0, plain))
        assert (own.mean(0) - MIXTURE.means[label]).abs().max() < 4 * 0.3 / math.sqrt(len(own)) + 0.02
        few = min(len(own), len(theirs))
        assert (own.std(0) - theirs.std(0)).abs().max() < 4 * 0.3 * math.sqrt(1 / few) + 0.01


def test_by_the_tracked_posterior_the_error_of_so_few_steps_is_left():
    left = [
        float((MIXTURE.nearest(draw(Particles(posterior=TrackedPosterior(0.4), particles=m))) == 0).float().mean())
        for m in (4, 16)
    ]
    assert left[0] < 0.4 / 2
    assert left[1] < left[0]


def test_particles_behind_dynamic_guidance_leave_less_than_it_does():
    weak = DynamicNegativeGuidance(0.5, ProbePosterior())
    left = [(MIXTURE.nearest(draw(g)) == 0).float().mean() for g in (weak, Particles(weak, ProbePosterior()))]
    assert left[0] > 0.05
    assert left[1] < 0.4 * left[0]


def test_one_particle_is_the_guidance_alone_until_the_first_resampling():
    plain, seen = (draw(Unguided(), range(64)), draw(Particles(particles=1, resamplings=1), range(64)))
    assert torch.equal(plain, seen)


def test_an_image_depends_on_its_seed_alone():
    guidance = Particles(posterior=ProbePosterior(), particles=3)
    together = draw(guidance, range(40))
    by_ten = torch.cat([draw(guidance, range(first, first + 10)) for first in (0, 10, 20, 30)])
    torch.testing.assert_close(by_ten, together, rtol=1e-4, atol=1e-4)


def test_all_particles_of_an_image_have_its_class_label():
    """Half of each class is the forbidden mode, of which the tracked posterior of so few steps leaves some."""
    mixture = GaussianMixture(LinearSchedule(), MEANS, 0.3, classes=[[0], [0, 1], [0, 2]])
    guidance, labels = Particles(posterior=TrackedPosterior(0.5), particles=8), torch.tensor([1, 2] * 150)
    predictor = mixture.predictor(guidance, [0], labels)
    x_0 = sample(predictor, guidance, mixture.schedule, ImageNoise(range(300), (2,)), STEPS)
    modes = mixture.nearest(x_0)
    assert (modes != 3 - labels).all()  # the mode of the other class
    assert (modes == 0).float().mean() < 0.5 / 3
    assert predictor.nfe == 300 * 8 * 2 * STEPS.steps


def test_recorders_note_one_chain_of_each_image_and_all_are_evaluated():
    guidance, seen = Particles(DynamicNegativeGuidance(1.0, ProbePosterior()), ProbePosterior(), 3), Trajectories()
    predictor = MIXTURE.predictor(guidance, [0])
    x_0 = sample(predictor, guidance, MIXTURE.schedule, ImageNoise(range(20), (2,)), STEPS, [seen])
    assert x_0.shape == (20, 2)
    assert seen.scale.shape == (20, STEPS.steps)
    assert seen.posterior.shape == (20, STEPS.steps, 1)
    assert predictor.nfe == 20 * 3 * 2 * STEPS.steps


def test_systematic_resampling_copies_each_chain_as_often_as_its_weight_says_give_or_take_one():
    weight = torch.rand(8, 500, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    chosen = systematic(weight.log(), uniform, 8)
    copies = torch.stack([(chosen == m).sum(0) for m in range(8)])
    expected = 8 * weight / weight.sum(0)
    assert ((copies - expected).abs() < 1).all()
    assert (copies.double().mean(1) - expected.mean(1)).abs().max() < 0.1  # without bias
    assert systematic(torch.tensor([[-torch.inf], [0.0]]), torch.tensor([0.3]), 2).tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("settings", "sampler", "reason"),
    [
        ({"particles": 0}, STEPS, "particles must be at least 1"),
        ({"resamplings": 0}, STEPS, "resamplings must be at least 1"),
        ({"resamplings": 51}, STEPS, "set resamplings to 50 or less"),
        ({}, Sampler(50, eta=0.5), "set eta to 1"),
    ],
)
def test_settings_that_do_not_go_are_refused(settings, sampler, reason):
    predictor = MIXTURE.predictor(Particles(posterior=ProbePosterior()), [0])

    def run() -> None:
        guidance = Particles(posterior=ProbePosterior(), **settings)
        sample(predictor, guidance, MIXTURE.schedule, ImageNoise(range(2), (2,)), sampler)

    with pytest.raises(SettingError, match=reason):
        run()
