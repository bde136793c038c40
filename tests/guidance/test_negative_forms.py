"""The forms of negative prompting: each its formula, what they reduce to, and what each does on exact mixtures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import LINEAR, step_at
from by_hand import predictions as random_predictions
from mixture import BatchNoise, GaussianMixture, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    CFGNegativePrompt,
    ComposableNot,
    ContrastiveCFG,
    Guidance,
    NegativePrompting,
    PerpNeg,
    SignedNegative,
    Unguided,
)
from dng_lightning.interfaces import Guided, Predictions
from dng_lightning.sampling import ClassConditionalPredictor, Sampler, sample

TWO = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0]], 0.3)
FOUR = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], 0.3)
AT = step_at()
SAMPLERS = {"ancestral": Sampler(50), "clipped": Sampler(50, clip=1.0), "DDIM": Sampler(50, eta=0.0)}
NULL_NEEDED = [ComposableNot(2.0), SignedNegative(2.0), PerpNeg(2.0), ContrastiveCFG(2.0)]
NO_PUSH = [
    CFGNegativePrompt(1.0),
    ComposableNot(0.0),
    SignedNegative(0.0, 5.0),
    PerpNeg(0.0, 5.0),
    ContrastiveCFG(0.0),
    ContrastiveCFG(5.0, tau=1e30),
]


def guide(guidance: Guidance, given: Predictions) -> Guided:
    return guidance.guide(given, None, AT)


def predictions(classes: int = 1, shape: tuple[int, ...] = (5, 3, 4, 4)) -> Predictions:
    """Three unlike predictions: the unconditional, that of the class and the forbidden ones."""
    noise = BatchNoise(shape, dtype=torch.double)
    null = noise()
    toward, away = 0.3 * noise(), torch.stack([0.2 * noise() for _ in range(classes)], 1)
    return Predictions(null + toward, null.unsqueeze(1) + away, null=null)


def without_class(given: Predictions) -> Predictions:
    return replace(given, denoised=given.null)


def hand_made(toward: list[float], *away: list[float]) -> Predictions:
    """One image of few pixels, the unconditional prediction 0."""
    of_class, forbidden = torch.tensor([toward]), torch.tensor([away])
    return Predictions(of_class, forbidden, null=torch.zeros_like(of_class))


def draw(guidance: Guidance, sampler: Sampler, count: int = 2048, mixture: GaussianMixture = TWO) -> Tensor:
    return trajectory(mixture, guidance, [0], sampler, BatchNoise((count, 2))).x_0


# --- formulas ---


@pytest.mark.parametrize("classes", [1, 3])
def test_negative_prompting_is_its_formula(classes):
    given = random_predictions(classes)
    guided = guide(NegativePrompting(1.7), given)
    base, negatives = given.denoised.double().numpy(), given.negatives.double().numpy()
    expected = base - 1.7 * sum(negatives[:, k] - base for k in range(classes))
    np.testing.assert_allclose(guided.denoised, expected, rtol=0, atol=2e-6)  # fp32 numbers up to 4
    np.testing.assert_allclose(guided.scale, np.full(5, 1.7), rtol=1e-7)


@pytest.mark.parametrize("classes", [1, 3])
def test_each_form_is_its_formula(classes):
    given = predictions(classes)
    null, of_class, forbidden = (x.numpy() for x in (given.null, given.denoised, given.negatives))
    each = range(classes)
    expected = {
        CFGNegativePrompt(2.5): of_class - 1.5 * sum(forbidden[:, k] - of_class for k in each),
        ComposableNot(2.5): null + 2.5 * (of_class - null) - 2.5 * sum(forbidden[:, k] - null for k in each),
        SignedNegative(0.7, 2.5): null + 2.5 * (of_class - null) - 0.7 * sum(forbidden[:, k] - null for k in each),
    }
    for guidance, denoised in expected.items():
        np.testing.assert_allclose(guide(guidance, given).denoised, denoised, rtol=0, atol=1e-12)
    assert [float(guide(guidance, given).scale[0]) for guidance in expected] == pytest.approx([1.5, 2.5, 0.7])


def test_with_one_forbidden_condition_they_are_as_they_are_written():
    given = predictions()
    null, of_class, forbidden = given.null, given.denoised, given.negatives[:, 0]
    cfg_negative, composed = guide(CFGNegativePrompt(7.5), given).denoised, guide(ComposableNot(7.5), given).denoised
    torch.testing.assert_close(cfg_negative, forbidden + 7.5 * (of_class - forbidden), rtol=0, atol=1e-12)
    torch.testing.assert_close(composed, null + 7.5 * (of_class - forbidden), rtol=0, atol=1e-12)
    # what they are confused with: on the same predictions the four are four
    forms = [NegativePrompting(7.5), CFGNegativePrompt(7.5), ComposableNot(7.5), SignedNegative(7.5)]
    results = [guide(form, given).denoised for form in forms]
    assert all((a - b).abs().mean() > 0.1 for i, a in enumerate(results) for b in results[:i])


def test_perp_neg_pushes_only_across_the_direction():
    given = predictions(2)
    guided = guide(PerpNeg(0.7, 2.5), given).denoised
    push = guided - given.null - 2.5 * (given.denoised - given.null)
    toward = (given.denoised - given.null).flatten(1)
    assert (push.flatten(1) * toward).sum(1).abs().max() < 1e-12
    # each condition by hand, an image at a time
    for image in range(5):
        expected = np.zeros(48)
        for k in range(2):
            away = (given.negatives[image, k] - given.null[image]).flatten().numpy()
            of_class = toward[image].numpy()
            expected -= 0.7 * (away - away @ of_class / (of_class @ of_class) * of_class)
        np.testing.assert_allclose(push[image].flatten(), expected, rtol=0, atol=1e-12)


# --- reductions ---


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("guidance", NO_PUSH, ids=str)
def test_without_a_push_the_images_are_the_unguided_ones_bit_for_bit(guidance, sampler):
    assert torch.equal(draw(guidance, sampler, 64, FOUR), draw(Unguided(), sampler, 64, FOUR))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.7])
def test_where_no_class_is_asked_for_all_are_negative_prompting_bit_for_bit(scale, sampler):
    expected = draw(NegativePrompting(scale), sampler, 64, FOUR)
    cfg_negative = CFGNegativePrompt(1 + scale)
    assert torch.equal(
        draw(cfg_negative, sampler, 64, FOUR), draw(NegativePrompting(cfg_negative.scale - 1), sampler, 64, FOUR)
    )
    for form in (ComposableNot(scale), SignedNegative(scale, 3.0), PerpNeg(scale, 3.0), ContrastiveCFG(scale, tau=0.0)):
        assert torch.equal(draw(form, sampler, 64, FOUR), expected)


def test_where_no_class_is_asked_for_several_conditions_add_up_as_in_negative_prompting():
    given = without_class(predictions(3))
    expected = guide(NegativePrompting(1.7), given).denoised
    forms = [
        CFGNegativePrompt(2.7),
        ComposableNot(1.7),
        SignedNegative(1.7),
        PerpNeg(1.7),
        ContrastiveCFG(1.7, tau=0.0),
    ]
    for form in forms:
        torch.testing.assert_close(guide(form, given).denoised, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 3])
def test_one_scale_for_both_signs_is_the_composable_not_and_contrastive_guidance_that_answers_to_nothing(classes):
    given = predictions(classes)
    composed = guide(ComposableNot(2.5), given).denoised
    for form in (SignedNegative(2.5, 2.5), ContrastiveCFG(2.5, tau=0.0)):
        torch.testing.assert_close(guide(form, given).denoised, composed, rtol=0, atol=1e-12)


def test_cfg_negative_is_negative_prompting_about_the_condition_and_asks_for_nothing_else():
    given = predictions(2)
    assert torch.equal(guide(CFGNegativePrompt(3.5), given).denoised, guide(NegativePrompting(2.5), given).denoised)
    assert not CFGNegativePrompt(3.5).needs().null
    assert all(form.needs().null for form in NULL_NEEDED)


def test_perp_neg_is_the_signed_form_across_and_classifier_free_guidance_along():
    across, along = hand_made([2.0, 0.0], [0.0, 3.0]), hand_made([2.0, 0.0], [3.0, 0.0])
    assert torch.equal(guide(PerpNeg(0.5, 4.0), across).denoised, guide(SignedNegative(0.5, 4.0), across).denoised)
    torch.testing.assert_close(guide(PerpNeg(0.5, 4.0), along).denoised, torch.tensor([[8.0, 0.0]]))
    oblique = hand_made([2.0, 0.0], [3.0, -1.0])
    torch.testing.assert_close(guide(PerpNeg(0.5, 4.0), oblique).denoised, torch.tensor([[8.0, 0.5]]))


def test_perp_neg_looks_at_each_image_and_at_all_of_its_pixels():
    whole = predictions(2, shape=(4, 2, 3, 3))
    guided = guide(PerpNeg(0.7, 2.5), whole).denoised
    for image in range(4):
        parts = (part[image : image + 1].flatten(-3) for part in (whole.denoised, whole.negatives, whole.null))
        base, negatives, null = parts
        alone = guide(PerpNeg(0.7, 2.5), Predictions(base, negatives, null=null)).denoised
        torch.testing.assert_close(guided[image].flatten(), alone[0], rtol=0, atol=1e-12)


# --- exact sampling ---


@pytest.mark.parametrize(
    ("guidance", "mean"),
    [
        (Unguided(), [2.0, 0.0]),
        (NegativePrompting(0.5), [2.25, -0.5]),
        (CFGNegativePrompt(1.5), [2.25, -0.5]),
        (ComposableNot(1.5), [0.75, -1.5]),
        (SignedNegative(0.5, 1.5), [2.25, -0.5]),
        (SignedNegative(0.5, 1.0), [1.25, -0.5]),
        (PerpNeg(0.5, 1.0), [2.0, -0.5]),
        (ContrastiveCFG(0.5, tau=0.0), [0.25, -0.5]),
        (ContrastiveCFG(0.5, tau=1e30), [2.0, 0.0]),
    ],
    ids=str,
)
def test_gaussians_of_one_width_come_out_as_the_gaussian_about_the_same_combination_of_means(guidance, mean):
    # their predictions differ by what does not depend on x, so that the guided one is again such a Gaussian's:
    # this is the drift, without end as the scale grows, that no mixture's support holds back
    three = GaussianMixture(LINEAR, [[0.0, 0.0], [2.0, 0.0], [1.5, 1.0]], 0.3)
    predictor = ClassConditionalPredictor(three.denoised, 0, [2], torch.full((1024,), 1))
    x_0 = sample(predictor, guidance, LINEAR, BatchNoise((1024, 2)), Sampler(100))
    # 1,024 images of width .3: a mean is known to .009; the chain starts .0064 (alpha_T) of a mean off its own
    torch.testing.assert_close(x_0.mean(0), torch.tensor(mean), rtol=0, atol=0.04)
    assert float(x_0.std(0).mean()) == pytest.approx(0.27, abs=0.02)  # of .3: 100 steps are that much too narrow


# --- errors ---


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize("form", [ComposableNot, SignedNegative, PerpNeg, ContrastiveCFG])
def test_settings_below_0_or_without_end_are_refused(form, bad):
    for setting in vars(form()):
        with pytest.raises(SettingError, match=f"^{setting} must be at least 0 and finite"):
            form(**{setting: bad})


@pytest.mark.parametrize("bad", [0.99, -1.0, math.inf, math.nan])
def test_the_cfg_negative_form_refuses_a_scale_that_attracts(bad):
    with pytest.raises(SettingError, match="scale must be at least 1 and finite"):
        CFGNegativePrompt(bad)


@pytest.mark.parametrize("guidance", NULL_NEEDED, ids=str)
def test_without_the_unconditional_prediction_they_say_what_is_missing(guidance):
    with pytest.raises(SettingError, match="the predictions have no null"):
        guide(guidance, replace(predictions(), null=None))
