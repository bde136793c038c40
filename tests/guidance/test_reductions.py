"""What each guidance reduces to: no push is no guidance, a posterior held fixed is negative prompting."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from by_hand import FOUR, IN_64_D, predictions, step_at, update
from mixture import BatchNoise, GaussianMixture, near, trajectory
from torch import Tensor

from dng_lightning.guidance import (
    AdaptiveNegative,
    ClassifierGuidance,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    DynamicSafeDenoiser,
    GeoGuide,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
    Unguided,
)
from dng_lightning.guidance.serialization import display_name_with_scale
from dng_lightning.posterior import (
    CalibratedPosterior,
    ClassifierPosterior,
    ConstantPosterior,
    ObserverPosterior,
    ProbePosterior,
    ReleasedPosterior,
    TrackedPosterior,
)
from dng_lightning.sampling import Sampler

CALIBRATION = [[-3.0, 1.1, -1.0], [4.0, 1.5, 1.0]]
SAMPLERS = {
    "ancestral": Sampler(8),
    "larger variance": Sampler(8, variance="beta"),
    "clipped": Sampler(8, clip=1.0),
    "DDIM": Sampler(8, eta=0.0),
    "eta .5": Sampler(8, eta=0.5),
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
pytestmark = pytest.mark.filterwarnings("ignore:a posterior tracked")


def samples(guidance: Guidance, forbidden: list[int], sampler: Sampler, mixture: GaussianMixture = FOUR) -> Tensor:
    # 64 images: SIMD lanes are all full, so an image's arithmetic is the same with and without its negatives
    return trajectory(mixture, guidance, forbidden, sampler, BatchNoise((64, mixture.dimensions))).x_0


@functools.cache
def unguided(forbidden: tuple[int, ...], sampler: Sampler) -> Tensor:
    return samples(Unguided(), list(forbidden), sampler)


@each_sampler
@pytest.mark.parametrize("forbidden", [[0], [0, 2, 3]], ids=["one class", "three classes"])
@pytest.mark.parametrize(
    "guidance",
    [
        NegativePrompting(0.0),
        SafeLatentDiffusion(0.0),
        DynamicNegativeGuidance(0.0),
        DynamicNegativeGuidance(0.0, ReleasedPosterior(0.25, 1.0, 2e-4, p_min=0.0, p_max=1 - 1e-9)),
        DynamicNegativeGuidance(1.0, TrackedPosterior(1e-30)),
        DynamicNegativeGuidance(0.0, TrackedPosterior(0.25, guidance_shift_weight=0.0)),
        DynamicNegativeGuidance(0.0, CalibratedPosterior(CALIBRATION, guidance_shift_weight=1.0)),
        DynamicNegativeGuidance(1.0, CalibratedPosterior([[0, 1.0, -100.0]], guidance_shift_weight=0.5)),
        DynamicNegativeGuidance(1.0, ConstantPosterior(1e-30)),
        DynamicNegativeGuidance(0.0, ClassifierPosterior()),
        DynamicNegativeGuidance(0.0, ClassifierPosterior(1 - 1e-9)),
        DynamicNegativeGuidance(1.0, ClassifierPosterior(1e-30)),
        DynamicNegativeGuidance(0.0, ProbePosterior()),
        DynamicNegativeGuidance(5.0, ProbePosterior(calibration=[[0, 1, -100]])),
        DynamicNegativeGuidance(1.0, TrackedPosterior(1e-30), skip_below=0.5),
        SafeLatentDiffusion(5.0, warmup=20),
        SafeLatentDiffusion(5.0, mask_scale=0.0),
        SafeLatentDiffusion(5.0, threshold=-math.inf),
        ClassifierGuidance(0.0),
        ClassifierGuidance(0.0, rule="mean"),
        ClassifierGuidance(1.0, p_max=1e-30),
        GeoGuide(0.0),
        GeoGuide(0.0, source="differences"),
        DynamicGeoGuide(0.0, TrackedPosterior(0.25)),
        DynamicGeoGuide(0.15, TrackedPosterior(1e-30)),
        near(SafeDenoiser, scale=0.0),
        near(SafeDenoiser, threshold=1e9),
        near(DynamicSafeDenoiser, scale=0.0),
        near(ShieldedDiffusion, scale=0.0),
        near(ShieldedDiffusion, radius=1e-9),
        near(SafetyGuidedFlow, scale=0.0),
        LimitedInterval(near(SafetyGuidedFlow), low=1e6),
        AdaptiveNegative(NegativePrompting(0.0)),
        AdaptiveNegative(NegativePrompting(5.0), ObserverPosterior(observe_steps=[0.999])),
        DynamicNegativeGuidance(5.0, ObserverPosterior(TrackedPosterior(), observe_steps=[0.999])),
        DynamicNegativeGuidance(5.0, ObserverPosterior(observe_steps=[0.999])),
    ],
    ids=display_name_with_scale,
)
def test_no_push_gives_the_unguided_images_bit_for_bit(guidance, forbidden, sampler):
    assert torch.equal(samples(guidance, forbidden, sampler), unguided(tuple(forbidden), sampler))


@each_sampler
@pytest.mark.parametrize("held", [lambda p: TrackedPosterior(p, temperature=0.0), ConstantPosterior])
@pytest.mark.parametrize(
    ("scale", "p", "mixture"),
    [(1.0, 0.5, FOUR), (1.0, 0.1, FOUR), (0.7, 0.3, FOUR), (3.0, 0.9, FOUR), (12.5, 0.01, FOUR), (0.7, 0.3, IN_64_D)],
)
def test_a_posterior_that_is_held_fixed_gives_negative_prompting_bit_for_bit(scale, p, mixture, held, sampler):
    dynamic = DynamicNegativeGuidance(scale, held(p))
    expected = scale * p / (1 - p)
    run = trajectory(mixture, dynamic, [0], sampler, BatchNoise((64, mixture.dimensions)))
    used = float(run.scale[0, 0])
    assert (run.scale == used).all()
    # the odds and the scale are each rounded to fp32, and then their product: at most 2 units in the last place
    assert used == pytest.approx(expected, rel=2 * 2**-23)
    # given the same fp32 scale, the arithmetic is the same
    assert torch.equal(run.x_0, samples(NegativePrompting(used), [0], sampler, mixture))


@pytest.mark.parametrize("posterior", [TrackedPosterior(0.2, temperature=0.0), ConstantPosterior(0.2)])
def test_posteriors_of_several_classes_held_fixed_and_equal_give_negative_prompting(posterior):
    dynamic = DynamicNegativeGuidance(2.0, posterior)
    guided = dynamic.guide(predictions(3), dynamic.start(torch.empty(5, 3, 4, 4), 3), step_at())
    constant = NegativePrompting(2.0 * 0.2 / (1 - 0.6)).guide(predictions(3), None, step_at())
    # the one scales before it sums, the other sums before it scales: a rounding or two apart
    torch.testing.assert_close(guided.denoised, constant.denoised, rtol=0, atol=1e-6)


@each_sampler
def test_safe_latent_diffusion_without_mask_and_momentum_is_negative_prompting(sampler):
    # every pixel forbidden in full
    safe = SafeLatentDiffusion(2.0, mask_scale=1e30, threshold=math.inf, momentum_scale=0.0)
    assert torch.equal(samples(safe, [0], sampler), samples(NegativePrompting(2.0), [0], sampler))


@pytest.mark.parametrize(
    "guidance",
    [
        NegativePrompting(3.0),
        DynamicNegativeGuidance(3.0),
        DynamicNegativeGuidance(3.0, ClassifierPosterior()),
        SafeLatentDiffusion(3.0),
    ],
    ids=display_name_with_scale,
)
def test_a_class_that_never_differs_from_the_base_moves_nothing(guidance):
    same = replace(predictions(1), negatives=predictions(1).denoised.unsqueeze(1))
    state = guidance.start(same.denoised, 1)
    assert torch.equal(guidance.guide(same, state, step_at()).denoised, same.denoised)
    update(guidance, state, step_at(), same.denoised, same.denoised, same)
