"""Noise that depends on an image's seed alone, and images that follow from it."""

import pytest
import torch
from mixture import GaussianMixture
from torch import Tensor

from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, NegativePrompting
from dng_lightning.posterior import ClassifierPosterior, ObserverPosterior, TrackedPosterior
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.schedule import LinearSchedule, RectifiedFlowSchedule

MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
FOUR = GaussianMixture(LinearSchedule(), MEANS, 0.3, [0.1, 0.4, 0.2, 0.3])
FLOW = GaussianMixture(RectifiedFlowSchedule(), MEANS, 0.3, [0.1, 0.4, 0.2, 0.3])

SHAPES = [(2,), (1, 3, 5), (1, 28, 28), (3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_draws_of_an_image_depend_on_its_seed_alone(shape):
    seeds = [3, 0, 41, 2**31, 7]
    together = ImageNoise(seeds, shape)
    draws = [together() for _ in range(4)]
    assert all(draw.shape == (5, *shape) for draw in draws)
    for others in ([3], [41, 3], [3, 3], [*range(20, 40), 3]):
        again = ImageNoise(others, shape)
        for draw in draws:
            now = again()
            assert torch.equal(now[others.index(3)], draw[0])
            if others.count(3) == 2:
                assert torch.equal(now[0], now[1])
    reversed_draws = ImageNoise(seeds[::-1], shape)
    assert all(torch.equal(reversed_draws().flip(0), draw) for draw in draws)


def test_the_draws_do_not_touch_and_are_not_touched_by_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = ImageNoise([1, 2], (1, 4, 4))()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(ImageNoise([1, 2], (1, 4, 4))(), first)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_the_draws_of_consecutive_seeds_are_standard_normal_and_unrelated(shape):
    count = 4000
    noise = ImageNoise(range(count), shape)
    first, second = (noise().flatten(1).double() for _ in range(2))
    # 5 standard errors: the largest of at most 64 means, variances or correlations is under 4 with a chance of 99.6 %
    bound = 5 / count**0.5
    for draws in (first, second):
        assert draws.mean(0).abs().max() < bound
        assert (draws.var(0) - 1).abs().max() < bound * 2**0.5
        assert (draws[1:] * draws[:-1]).mean(0).abs().max() < bound  # seed i with seed i + 1
        assert (draws[:, 1:] * draws[:, :-1]).mean(0).abs().max() < bound  # a number with the next
    assert (first * second).mean(0).abs().max() < bound  # a draw with the next


GUIDANCES: dict[str, Guidance] = {
    "constant scale": NegativePrompting(),
    "tracked": DynamicNegativeGuidance(),
    "tracked, skipping": DynamicNegativeGuidance(skip_below=0.02),
    "tracked with probes": DynamicNegativeGuidance(posterior=TrackedPosterior(divergence=1)),
    "classifier, skipping": DynamicNegativeGuidance(posterior=ClassifierPosterior(), skip_below=0.02),
    "observer": DynamicNegativeGuidance(posterior=ObserverPosterior(TrackedPosterior())),
}


@pytest.mark.filterwarnings("ignore:a posterior tracked")
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
@pytest.mark.parametrize("mixture", [FOUR, FLOW], ids=["linear", "rectified flow from pure noise"])
@pytest.mark.parametrize("sampler", [Sampler(50), Sampler(50, eta=0.0)], ids=["ancestral", "DDIM"])
def test_the_same_batch_gives_bit_identical_images_and_another_batch_the_same_to_rounding(guidance, mixture, sampler):
    def images(seeds: list[int]) -> Tensor:
        predictor = mixture.predictor(guidance, [0])
        return sample(predictor, guidance, mixture.schedule, ImageNoise(seeds, (2,)), sampler)

    seeds = list(range(37))
    whole = images(seeds)
    assert torch.equal(images(seeds), whole)
    parts = torch.cat([images(seeds[:5]), images(seeds[5:6]), images(seeds[6:])])
    # sums and SIMD tails may round differently; 50 steps near the border of two modes amplify 1e-7 a hundredfold
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(images(seeds[::-1]).flip(0), whole, rtol=0, atol=1e-4)
