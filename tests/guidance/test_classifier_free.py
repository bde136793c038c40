"""Classifier-free guidance and CFG++: their ends bit for bit, and the known answer for Gaussians."""

from itertools import pairwise

import pytest
import torch
from by_hand import FOUR, LINEAR, eps_of, step_at
from mixture import BatchNoise, GaussianMixture, trajectory

from dng_lightning.errors import SettingError
from dng_lightning.guidance import CFGPlusPlus, ClassifierFreeGuidance, Unguided
from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.sampling import ClassConditionalPredictor, Sampler, sample

STEP = step_at()


def given() -> Predictions:
    return Predictions(*(BatchNoise((5, 3, 4, 4), seed)() for seed in (0, 1)), null=BatchNoise((5, 3, 4, 4), 2)())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_scale_0_is_unconditional_and_scale_1_is_the_class_bit_for_bit(eta):
    def images(guidance, label):
        return trajectory(FOUR, guidance, [0], Sampler(50, eta=eta), BatchNoise((64, 2)), label).x_0

    assert torch.equal(images(ClassifierFreeGuidance(1.0), 2), images(Unguided(), 2))
    assert torch.equal(images(ClassifierFreeGuidance(0.0), 2), images(Unguided(), None))


@pytest.mark.parametrize("method", [ClassifierFreeGuidance, CFGPlusPlus])
@pytest.mark.parametrize("scale", [0.0, 0.3, 0.5, 1.0])
def test_the_prediction_is_the_formula(method, scale):
    p = given()
    guided = method(scale).guide(p, None, STEP)
    torch.testing.assert_close(guided.denoised, p.null + scale * (p.denoised - p.null), rtol=0, atol=1e-6)
    assert (guided.scale == torch.full((5,), scale)).all()


def test_beyond_1_it_goes_on_from_the_prediction_of_the_class():
    p = given()
    denoised = ClassifierFreeGuidance(7.5).guide(p, None, STEP).denoised
    torch.testing.assert_close(denoised, p.null + 7.5 * (p.denoised - p.null), rtol=0, atol=1e-5)


def test_of_two_gaussians_of_one_width_it_makes_one_further_on():
    # N(m)^w N(0)^(1-w) of equal widths is N(w m), and this at every noise level alike
    whole, class_1 = (GaussianMixture(LINEAR, [mean], 0.3) for mean in ([0.0, 0.0], [0.5, -0.2]))

    def model(x_t, level, labels):
        return torch.where((labels == 0).unsqueeze(1), whole.denoised(x_t, level), class_1.denoised(x_t, level))

    predictor = ClassConditionalPredictor(model, 0, [], torch.ones(4096, dtype=torch.long))
    x_0 = sample(predictor, ClassifierFreeGuidance(3.0), LINEAR, BatchNoise((4096, 2)), Sampler(200))
    torch.testing.assert_close(x_0.mean(0), torch.tensor([1.5, -0.6]), rtol=0, atol=0.02)  # 4 sigma of the mean
    torch.testing.assert_close(x_0.std(0), torch.tensor([0.3, 0.3]), rtol=0, atol=0.02)
    assert predictor.nfe == 2 * 200 * 4096


def test_cfg_plus_plus_goes_back_with_the_unconditional_noise():
    """Algorithm 2 of the paper, written out, beside the package's run."""
    run = trajectory(FOUR, CFGPlusPlus(0.6), [0], Sampler(25, eta=0.0), BatchNoise((64, 2)), 1)
    x = run.x[0].double()
    for number, (t, s) in enumerate(pairwise(run.levels)):
        labels = torch.ones(64, dtype=torch.long)
        null, toward = (eps_of(FOUR.denoised(x, t, asked), x, t) for asked in (None, labels))
        x_0 = (x - t.sigma * (null + 0.6 * (toward - null))) / t.alpha
        x = s.alpha * x_0 + s.sigma * null
        torch.testing.assert_close(run.x[number + 1].double(), x, rtol=0, atol=1e-4)  # fp32 states, over 25 steps


def test_cfg_plus_plus_at_0_is_unconditional():
    runs = [
        trajectory(FOUR, guidance, [0], Sampler(25, eta=0.0), BatchNoise((64, 2)), label).x_0
        for guidance, label in ((CFGPlusPlus(0.0), 1), (Unguided(), None))
    ]
    torch.testing.assert_close(*runs, rtol=0, atol=1e-4)  # alpha x0_hat + sigma eps is x_t up to rounding


@pytest.mark.parametrize("guidance", [ClassifierFreeGuidance(), CFGPlusPlus()])
def test_without_a_class_nothing_is_drawn(guidance):
    predictor = FOUR.shared([0])
    with pytest.raises(SettingError, match="guides toward a class: set class_labels to one"):
        sample(predictor, guidance, LINEAR, BatchNoise((2, 2)))
    assert predictor.nfe == 0
    assert guidance.needs() == Needs(null=True, class_labels=True)
    with pytest.raises(SettingError, match="the predictions have no null"):
        guidance.guide(Predictions(given().denoised, given().negatives), None, STEP)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_cfg_plus_plus_stays_between_the_two(bad):
    with pytest.raises(SettingError, match=r"scale of CFG\+\+ must be in .0, 1."):
        CFGPlusPlus(bad)
