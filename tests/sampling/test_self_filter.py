"""Rejection by the posterior of the chain itself."""

import math
from itertools import pairwise

import pytest
import torch
from mixture import GaussianMixture

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, LimitedInterval, PositiveAndNegative, Unguided
from dng_lightning.posterior import ProbePosterior, TrackedPosterior
from dng_lightning.sampling import ImageNoise, Sampler, SelfFilter, Trajectories, sample
from dng_lightning.sampling.self_filter import split
from dng_lightning.schedule import LinearSchedule, RectifiedFlowSchedule

MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
MIXTURE = GaussianMixture(LinearSchedule(), MEANS, 0.3, [0.3, 0.1, 0.2, 0.4])
N, STEPS = 1500, Sampler(40)
PROBE = ProbePosterior()


def draw(guidance: Guidance, seeds: range = range(N), mixture: GaussianMixture = MIXTURE) -> tuple[torch.Tensor, float]:
    """The images, and the evaluations of each."""
    predictor = mixture.predictor(guidance, [0])
    x_0 = sample(predictor, guidance, mixture.schedule, ImageNoise(seeds, (2,)), STEPS)
    return x_0, predictor.nfe / len(seeds)


@pytest.mark.parametrize("posterior", [PROBE, TrackedPosterior(0.3)], ids=["probe", "tracked"])
@pytest.mark.parametrize("schedule", [LinearSchedule(), RectifiedFlowSchedule()], ids=["linear", "flow"])
def test_what_is_left_are_the_other_modes_in_their_own_balance(posterior, schedule):
    mixture = GaussianMixture(schedule, MEANS, 0.3, [0.3, 0.1, 0.2, 0.4])
    x_0, nfe = draw(SelfFilter(posterior=posterior, threshold=0.3), mixture=mixture)
    counts = mixture.nearest(x_0).bincount(minlength=4) / N
    assert counts[0] < 0.03
    for share, weight in zip(counts[1:], (1 / 7, 2 / 7, 4 / 7), strict=True):
        assert abs(share - weight) < 4 * math.sqrt(weight * (1 - weight) / N) + 0.01
    # some 1 / .7 chains an image
    assert 1.25 < nfe / (STEPS.steps * (1 if posterior == PROBE else 2)) < 1.65


def test_images_whose_first_chain_is_kept_are_those_of_the_guidance_itself():
    plain, _ = draw(Unguided())
    filtered, _ = draw(SelfFilter(posterior=PROBE))
    allowed = MIXTURE.nearest(plain) != 0
    assert (plain[allowed] == filtered[allowed]).all(1).float().mean() > 0.95
    assert (MIXTURE.nearest(filtered[~allowed]) != 0).float().mean() > 0.95


def test_a_threshold_that_nothing_exceeds_and_a_single_draw_change_nothing_bit_for_bit():
    plain, nfe = draw(Unguided(), range(64))
    for never in (SelfFilter(posterior=PROBE, threshold=1 - 1e-12), SelfFilter(posterior=PROBE, max_draws=1)):
        found, cost = draw(never, range(64))
        assert torch.equal(found, plain)
        assert cost == nfe


@pytest.mark.parametrize("levels", [(0.0,), (0.4, 0.0)])
def test_an_image_depends_on_its_seed_alone(levels):
    guidance = SelfFilter(posterior=PROBE, threshold=0.2, levels=levels)
    together, _ = draw(guidance, range(40))
    by_ten = torch.cat([draw(guidance, range(first, first + 10))[0] for first in (0, 10, 20, 30)])
    torch.testing.assert_close(by_ten, together, rtol=1e-4, atol=1e-4)


def test_an_early_check_saves_evaluations_and_catches_as_many():
    """Modes that lie far apart are decided early."""
    mixture = GaussianMixture(LinearSchedule(), [[4 * x, 4 * y] for x, y in MEANS], 0.3, [0.3, 0.1, 0.2, 0.4])
    late, late_nfe = draw(SelfFilter(posterior=PROBE, threshold=0.3), mixture=mixture)
    both, both_nfe = draw(SelfFilter(posterior=PROBE, threshold=(0.9, 0.3), levels=(0.4, 0.0)), mixture=mixture)
    assert both_nfe < 0.95 * late_nfe
    for x_0 in (late, both):
        assert (mixture.nearest(x_0) == 0).float().mean() < 0.01


def test_behind_a_guidance_it_catches_what_is_left():
    weak = DynamicNegativeGuidance(0.3, PROBE)
    without, _ = draw(weak)
    filtered, nfe = draw(SelfFilter(weak, PROBE))
    left = [(MIXTURE.nearest(x_0) == 0).float().mean() for x_0 in (without, filtered)]
    assert left[0] > 0.05
    assert left[1] < 0.02
    assert nfe < 2 * 1.3 * STEPS.steps


def test_the_posterior_of_the_guidance_serves_as_well():
    tracked = TrackedPosterior(0.3)
    own, own_nfe = draw(SelfFilter(DynamicNegativeGuidance(0.0, tracked), None), range(200))
    watched, nfe = draw(SelfFilter(Unguided(), tracked), range(200))
    assert torch.equal(own, watched)
    assert own_nfe == nfe


def test_a_condition_that_is_independent_of_the_prompt_is_filtered():
    """Low or high are the prompts, and left is forbidden: of the mixture's four modes high right is left."""
    modes = [[-1.5, -1.5], [-1.5, 1.5], [1.5, -1.5], [1.5, 1.5]]
    mixture = GaussianMixture(LinearSchedule(), modes, 0.3, [0.18, 0.12, 0.42, 0.28], [[1, 3], [0, 1]])
    tracked = DynamicNegativeGuidance(0.0, TrackedPosterior(0.3))
    guidance = SelfFilter(PositiveAndNegative(tracked, independent=True), None, threshold=0.5)
    predictor = mixture.predictor(guidance, [1], torch.zeros(400, dtype=torch.long))
    x_0 = sample(predictor, guidance, mixture.schedule, ImageNoise(range(400), (2,)), Sampler(100))
    counts = mixture.nearest(x_0).bincount(minlength=4) / 400
    assert counts[1] < 0.04  # of .3
    assert counts[3] > 0.94


def test_images_that_are_drawn_anew_keep_their_class_labels():
    """Half of each class is the forbidden mode: what is left is the other half, of each image's own class."""
    mixture = GaussianMixture(LinearSchedule(), MEANS, 0.3, classes=[[0], [0, 1], [0, 2]])
    guidance, labels = SelfFilter(posterior=TrackedPosterior(0.5), threshold=(0.8, 0.2), levels=(0.4, 0.0)), [1, 2]
    predictor = mixture.predictor(guidance, [0], torch.tensor(labels * 200))
    x_0 = sample(predictor, guidance, mixture.schedule, ImageNoise(range(400), (2,)), STEPS)
    assert (mixture.nearest(x_0) == predictor.class_labels).float().mean() > 0.96
    assert 400 * 2 * STEPS.steps * 1.5 < predictor.nfe < 400 * 2 * STEPS.steps * 2.5


def test_recorders_note_every_step_of_the_whole_batch():
    guidance, seen = (
        SelfFilter(DynamicNegativeGuidance(0.3, PROBE), PROBE, (0.6, 0.4, 0.3), (0.5, 0.2, 0.0)),
        Trajectories(),
    )
    predictor = MIXTURE.predictor(guidance, [0])
    sample(predictor, guidance, MIXTURE.schedule, ImageNoise(range(50), (2,)), STEPS, [seen])
    assert seen.scale.shape == (50, STEPS.steps)
    assert seen.posterior.shape == (50, STEPS.steps, 1)


def test_the_parts_of_a_chain_are_the_chain():
    chain = STEPS.chain(MIXTURE.schedule)
    parts = split(chain, MIXTURE.schedule, (0.4, 0.1))
    assert [step for part in parts for step in part] == chain
    assert [MIXTURE.schedule.fraction(after[0].level) for _, after in pairwise(parts)] == pytest.approx([0.4, 0.1])
    assert split(chain, MIXTURE.schedule, (0.0,)) == [chain]
    with pytest.raises(SettingError, match="need a step between any two"):
        split(chain, MIXTURE.schedule, (0.415, 0.41))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"threshold": 1.0}, "threshold must be inside"),
        ({"threshold": [0.1, 0.2]}, "one number or one per level"),
        ({"levels": ()}, "levels must be fractions"),
        ({"levels": (1.0,)}, "levels must be fractions"),
        ({"levels": (0.1, 0.4)}, "levels must decrease"),
        ({"max_draws": 0}, "max_draws must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, reason):
    with pytest.raises(SettingError, match=reason):
        SelfFilter(**settings)


def test_what_cannot_be_filtered_is_refused():
    guidance, noise = SelfFilter(posterior=PROBE), ImageNoise(range(4), (2,))
    with pytest.raises(SettingError, match="give it an ImageNoise"):
        sample(MIXTURE.predictor(guidance, [0]), guidance, MIXTURE.schedule, lambda: torch.randn(4, 2), STEPS)
    with pytest.raises(SettingError, match="needs a forbidden class"):
        sample(MIXTURE.shared([]), guidance, MIXTURE.schedule, noise, STEPS)
    bare = SelfFilter(Unguided(), None)
    with pytest.raises(SettingError, match="posterior null is the guidance's, which has none"):
        sample(MIXTURE.predictor(bare, [0]), bare, MIXTURE.schedule, noise, STEPS)
    with pytest.raises(SettingError, match="wrap the predictor in WithProbe"):
        sample(MIXTURE.shared([0]), guidance, MIXTURE.schedule, noise, STEPS)
    inside = LimitedInterval(guidance, 0.1, 1.0)
    with pytest.raises(SettingError, match="make it the outermost guidance"):
        sample(MIXTURE.predictor(inside, [0]), inside, MIXTURE.schedule, noise, STEPS)
