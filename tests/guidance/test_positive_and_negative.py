"""A class without a forbidden part of it, on a mixture whose classes overlap."""

import math

import pytest
import torch
from by_hand import LINEAR
from mixture import BatchNoise, GaussianMixture, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    DynamicNegativeGuidance,
    Guidance,
    NegativePrompting,
    PositiveAndNegative,
    SafeLatentDiffusion,
    SignedNegative,
    Unguided,
)
from dng_lightning.guidance.serialization import display_name_with_scale
from dng_lightning.interfaces import Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.posterior import ClassifierPosterior, ObserverPosterior, TrackedPosterior
from dng_lightning.sampling import ClassConditionalPredictor, Denoiser, Sampler, sample

MEANS, WEIGHTS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], [0.3, 0.2, 0.2, 0.3]
RIGHT_AND_LEFT, LEFT, TOP = 0, 1, 2
MIXTURE = GaussianMixture(LINEAR, MEANS, 0.3, WEIGHTS, [[0, 1], [0], [2]])
PRIOR = 0.3 / 0.5  # of the left in what is asked for


def images(guidance: Guidance, count: int = 64, steps: int = 50, model: Denoiser = MIXTURE.denoised) -> Tensor:
    labels = torch.full((count,), RIGHT_AND_LEFT)
    predictor = ClassConditionalPredictor(model, MIXTURE.null_class, [LEFT], labels)
    return sample(predictor, guidance, LINEAR, BatchNoise((count, 2)), Sampler(steps))


METHODS = [
    Unguided(),
    NegativePrompting(1.5),
    SafeLatentDiffusion(2.0),
    DynamicNegativeGuidance(posterior=TrackedPosterior(PRIOR)),
    DynamicNegativeGuidance(2.0, TrackedPosterior(PRIOR, guidance_shift_weight=0.3)),
]


@pytest.mark.parametrize("guidance", METHODS)
def test_on_the_bare_prediction_of_the_class_it_is_the_negative_guidance_bit_for_bit(guidance):
    assert torch.equal(images(PositiveAndNegative(guidance)), images(guidance))


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("guidance", METHODS)
def test_it_is_the_negative_guidance_of_a_model_that_has_classifier_free_guidance_itself(guidance, w):
    def sharpened(x_t: Tensor, level: NoiseLevel, labels: Tensor | None) -> Tensor:
        return torch.lerp(MIXTURE.denoised(x_t, level), MIXTURE.denoised(x_t, level, labels), w)

    torch.testing.assert_close(
        images(PositiveAndNegative(guidance, w)), images(guidance, model=sharpened), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("posterior", "steps", "most"),
    # tracking misses .02 to .05 of a half at 1,000 and 50 steps; a classifier knows
    [(TrackedPosterior(PRIOR), 250, 0.06), (ClassifierPosterior(), 100, 0.01)],
    ids=["tracked", "classifier"],
)
def test_the_class_is_drawn_without_its_forbidden_part(posterior, steps, most):
    guidance = PositiveAndNegative(DynamicNegativeGuidance(posterior=posterior))
    count = 2048
    if isinstance(posterior, ClassifierPosterior):  # p(left | x, right or left)
        among = GaussianMixture(LINEAR, MEANS[:2], 0.3, [0.6, 0.4], [[0, 1], [0]])
        run = trajectory(among, guidance, [LEFT], Sampler(steps), BatchNoise((count, 2)), RIGHT_AND_LEFT)
        x_0 = run.x_0
    else:
        x_0 = images(guidance, count, steps)
    shares = MIXTURE.nearest(x_0).bincount(minlength=4) / count
    assert shares[0] < most
    assert shares[1] > 1 - most - 0.005
    kept = x_0[MIXTURE.nearest(x_0) == 1]
    torch.testing.assert_close(kept.mean(0), torch.tensor([1.5, 0.0]), rtol=0, atol=0.04)
    torch.testing.assert_close(kept.std(0), torch.tensor([0.3, 0.3]), rtol=0, atol=0.05)


def test_without_the_negative_the_class_has_its_forbidden_part():
    shares = MIXTURE.nearest(images(Unguided(), 2048)).bincount(minlength=4) / 2048
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.4, 0.0, 0.0]), rtol=0, atol=0.035)  # 3 sigma


def test_the_posterior_is_that_of_the_forbidden_part_in_the_class():
    # unguided within the class; the exact p(left | x, right or left)
    guidance = PositiveAndNegative(DynamicNegativeGuidance(0.0, TrackedPosterior(PRIOR, p_max=1 - 1e-9)))
    run = trajectory(MIXTURE, guidance, [LEFT], Sampler(250), BatchNoise((2048, 2)), RIGHT_AND_LEFT)
    for i in (125, 200, 249):
        among = MIXTURE.log_joint(run.x[i], run.levels[i])[:, :2].softmax(1)[:, 0]
        # the tracker's error at 250 steps is .029 where classes are even
        assert float((run.posterior[i, :, 0] - among).abs().mean()) < 0.04
    assert float(run.posterior[-1].mean()) == pytest.approx(PRIOR, abs=0.04)


# --- a forbidden class that is no part of the one that is asked for ---

# Two attributes that know nothing of each other: left or right, low or high.
CROSSED_WEIGHTS = [0.3 * 0.6, 0.3 * 0.4, 0.7 * 0.6, 0.7 * 0.4]  # low left, high left, low right, high right
CROSSED = GaussianMixture(
    LINEAR, [[-1.5, -1.5], [-1.5, 1.5], [1.5, -1.5], [1.5, 1.5]], 0.3, CROSSED_WEIGHTS, [[1, 3], [0, 1], [1]]
)
HIGH, ANY_LEFT, HIGH_LEFT = 0, 1, 2


def crossed(guidance: Guidance, forbidden: int = ANY_LEFT, count: int = 64) -> Tensor:
    labels = torch.full((count,), HIGH)
    predictor = ClassConditionalPredictor(CROSSED.denoised, CROSSED.null_class, [forbidden], labels)
    return sample(predictor, guidance, LINEAR, BatchNoise((count, 2)), Sampler(100))


@pytest.mark.parametrize("method", METHODS)
def test_of_an_independent_class_it_avoids_what_is_both(method):
    ours = crossed(PositiveAndNegative(method, independent=True))
    torch.testing.assert_close(ours, crossed(PositiveAndNegative(method), HIGH_LEFT), rtol=0, atol=1e-4)


def test_it_draws_the_class_without_what_is_forbidden_of_it():
    method = DynamicNegativeGuidance(posterior=TrackedPosterior(0.3))
    shares = (
        CROSSED.nearest(crossed(PositiveAndNegative(method, independent=True), count=2048)).bincount(minlength=4) / 2048
    )
    assert shares[1] < 0.04  # of 30 %; what tracking misses in 100 steps
    assert shares[3] > 0.955
    apart = CROSSED.nearest(crossed(PositiveAndNegative(method), count=2048)).bincount(minlength=4) / 2048
    assert apart[1] > 0.1  # its posterior comes to an end where "left" and "high" are as likely, at .3 * .4 / .3 or so


def test_with_a_constant_scale_it_is_the_signed_form():
    ours = crossed(PositiveAndNegative(NegativePrompting(1.5), 2.0, independent=True))
    torch.testing.assert_close(ours, crossed(SignedNegative(1.5, cfg_scale=2.0)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_the_posterior_of_an_independent_class_is_exact_whatever_the_pull(w):
    guidance = PositiveAndNegative(
        DynamicNegativeGuidance(0.0, TrackedPosterior(0.3, p_max=1 - 1e-9)), w, independent=True
    )
    run = trajectory(CROSSED, guidance, [ANY_LEFT], Sampler(250), BatchNoise((2048, 2)), HIGH)
    for i in (125, 200, 249):
        each = CROSSED.log_joint(run.x[i], run.levels[i]).softmax(1)
        assert float((run.posterior[i, :, 0] - each[:, :2].sum(1)).abs().mean()) < 0.04


def test_it_says_what_it_cannot_have():
    probed = DynamicNegativeGuidance(posterior=TrackedPosterior(divergence=1))
    with pytest.raises(SettingError, match="independent goes without a divergence: set divergence to 0"):
        PositiveAndNegative(probed, independent=True)
    needs = PositiveAndNegative(DynamicNegativeGuidance(), independent=True).needs()
    assert (needs.null, needs.class_labels) == (True, True)
    assert needs.is_biased(0.5)
    assert not needs.is_biased(1.0)
    assert not PositiveAndNegative(NegativePrompting(), independent=True).needs().is_biased(0.0)


def test_what_it_needs_is_what_the_other_needs_and_its_own():
    bare, sharpened = (PositiveAndNegative(NegativePrompting(), w).needs() for w in (1.0, 2.0))
    assert (bare.negatives, bare.null, bare.class_labels) == (True, False, True)
    assert (sharpened.negatives, sharpened.null, sharpened.class_labels) == (True, True, True)
    oracle = DynamicNegativeGuidance(posterior=ClassifierPosterior())
    assert PositiveAndNegative(oracle).needs().classifier == "posterior"
    with pytest.raises(SettingError, match="PositiveAndNegative guides toward a class"):
        sample(MIXTURE.shared([LEFT]), PositiveAndNegative(NegativePrompting()), LINEAR, BatchNoise((2, 2)))


INACTIVE = ObserverPosterior(observe_steps=[0.999])  # nothing is active in so few steps


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("w", [1.0, 2.5])
@pytest.mark.parametrize(
    "method",
    [NegativePrompting(1.5), SafeLatentDiffusion(2.0), DynamicNegativeGuidance(2.0, TrackedPosterior(0.3))],
    ids=display_name_with_scale,
)
def test_where_nothing_is_active_the_images_are_the_base_bit_for_bit(method, w, independent):
    base = trajectory(CROSSED, PositiveAndNegative(Unguided(), w), [ANY_LEFT], Sampler(50), BatchNoise((64, 2)), HIGH)
    outside = AdaptiveNegative(PositiveAndNegative(method, w, independent), INACTIVE)
    inside = PositiveAndNegative(AdaptiveNegative(method, INACTIVE), w, independent)
    for guidance in (outside, inside):
        run = trajectory(CROSSED, guidance, [ANY_LEFT], Sampler(50), BatchNoise((64, 2)), HIGH)
        assert torch.equal(run.x_0, base.x_0)
        assert not run.scale.any()


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_a_scale_below_0_or_without_end_is_refused(bad):
    with pytest.raises(SettingError, match="cfg_scale must be at least 0"):
        PositiveAndNegative(NegativePrompting(), bad)


def test_a_difference_and_its_divergence_grow_alike():
    base, null = BatchNoise((5, 2))(), BatchNoise((5, 2), 1)()
    given = Predictions(base, BatchNoise((5, 3, 2), 2)(), null=null, divergence=BatchNoise((5, 3), 3)())
    made = PositiveAndNegative(NegativePrompting(), 2.5).sharpened(given)
    difference = 2.5 * (given.negatives - base.unsqueeze(1))
    torch.testing.assert_close(made.negatives - made.denoised.unsqueeze(1), difference)
    assert torch.equal(made.divergence, 2.5 * given.divergence)
