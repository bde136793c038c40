"""Concept Removal Guidance: the transcribed formula on eps predictions, its geometry, and what it does on a mixture."""

from dataclasses import replace

import pytest
import torch
from by_hand import LINEAR, eps_of, nth_step, step_at
from mixture import BatchNoise, GaussianMixture, ring, trajectory

from dng_lightning.errors import SettingError
from dng_lightning.guidance import ConceptRemovalGuidance, Unguided
from dng_lightning.interfaces import Predictions
from dng_lightning.sampling import Sampler
from dng_lightning.schedule import RectifiedFlowSchedule

EIGHT = GaussianMixture(LINEAR, ring(3.0, 8, 2), 0.3, classes=[[0, 1], [1, 2]])


def given(conditions: int = 2) -> Predictions:
    noise = BatchNoise((5, 3, 4, 4), dtype=torch.double)
    null = noise()
    negatives = torch.stack([null + 0.3 * noise() for _ in range(conditions)], 1)
    return Predictions(null + 0.5 * (negatives[:, 0] - null) + 0.2 * noise(), negatives, null=null)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_it_is_the_transcribed_formula(weight: float):
    """Step by step over three levels of DDPM, on eps predictions, with beta, alpha and alpha_bar of its tables."""
    guidance, x_t = ConceptRemovalGuidance(0.7, threshold=-0.05, weight=weight), torch.zeros(5, 3, 4, 4).double()
    guided_by, state, T = given(), guidance.start(x_t, 2), 1000
    earlier, pushed = torch.zeros(5, 2).double(), 0
    for t in (500, 499, 498):
        step = step_at(t, t - 1)
        guided = guidance.guide(guided_by, state, step)
        state = guidance.update(state, step, x_t, x_t, guided_by, guided)

        alpha_bar = LINEAR.level(t).alpha ** 2
        alpha = alpha_bar / LINEAR.level(t - 1).alpha ** 2
        kappa = (1 - alpha) * T / (2 * alpha * (1 - alpha_bar))
        plus, null = (eps_of(x, x_t, t) for x in (guided_by.denoised, guided_by.null))
        expected = plus.clone()
        for k in range(2):
            minus = eps_of(guided_by.negatives[:, k], x_t, t)
            h = (plus - null).square().flatten(1).sum(1) - (plus - minus).square().flatten(1).sum(1)
            presence, delta = weight / 2 * h + earlier[:, k] / T, minus - null
            omega = (presence + 0.05) / (weight * delta.square().flatten(1).sum(1))
            pushed += int((omega > 0).sum())
            expected -= 0.7 * (omega.clamp(min=0).view(-1, 1, 1, 1)) * delta
            earlier[:, k] += kappa * h
        torch.testing.assert_close(eps_of(guided.denoised, x_t, t), expected, rtol=1e-5, atol=1e-6)
    assert 0 < pushed < 30  # both sides of the threshold


def test_scale_1_brings_the_presence_down_to_the_threshold():
    guidance, predictions, step = ConceptRemovalGuidance(threshold=0.001), given(1), step_at()
    state = guidance.start(predictions.denoised, 1)
    guided = guidance.guide(predictions, state, step)
    assert (guided.scale > 0).any()
    again = guidance.guide(replace(predictions, denoised=guided.denoised), state, step)
    assert (again.scale < 1e-4 * guided.scale.max()).all()


def test_nothing_is_pushed_below_the_threshold_or_along_no_difference():
    predictions = given()
    far = ConceptRemovalGuidance(threshold=1e9)
    state = far.start(predictions.denoised, 2)
    assert torch.equal(far.guide(predictions, state, step_at()).denoised, predictions.denoised)
    equal = replace(predictions, negatives=predictions.null.unsqueeze(1).repeat(1, 2, 1, 1, 1))
    eager = ConceptRemovalGuidance(threshold=-1.0)
    assert torch.equal(eager.guide(equal, state, step_at()).denoised, equal.denoised)
    inactive = replace(predictions, active=torch.zeros(5, 2, dtype=torch.bool))
    assert torch.equal(eager.guide(inactive, state, nth_step(3)).denoised, predictions.denoised)


@pytest.mark.parametrize("schedule", [LINEAR, RectifiedFlowSchedule()], ids=["DDPM", "rectified flow"])
def test_on_a_mixture_it_removes_what_both_classes_share(schedule):
    mixture = GaussianMixture(schedule, ring(3.0, 8, 2), 0.3, classes=[[0, 1], [1, 2]])

    def share(guidance) -> float:
        run = trajectory(mixture, guidance, [1], Sampler(100), BatchNoise((1024, 2)), class_label=0)
        assert run.x.isfinite().all()
        return float((mixture.nearest(run.x_0) != 0).double().mean())

    assert share(Unguided()) == pytest.approx(0.5, abs=4 * 0.016)
    # 20 % are left or pushed to other modes, see scripts/benchmarks/mixture.md
    assert share(ConceptRemovalGuidance(threshold=-1.0)) < 0.3


def test_settings_that_cannot_be():
    for settings in ({"scale": -1.0}, {"threshold": float("nan")}, {"weight": 0.0}):
        with pytest.raises(SettingError, match=next(iter(settings))):
            ConceptRemovalGuidance(**settings)
