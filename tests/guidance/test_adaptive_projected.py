"""Adaptive Projected Guidance against its algorithm on denoised images, and as classifier-free guidance."""

import math

import numpy as np
import pytest
import torch
from by_hand import FOUR, LINEAR, denoised_from, step_at, update
from mixture import BatchNoise, trajectory

from dng_lightning.errors import SettingError
from dng_lightning.guidance import AdaptiveProjectedGuidance, ClassifierFreeGuidance, Unguided
from dng_lightning.interfaces import Predictions
from dng_lightning.sampling import Sampler


@pytest.mark.parametrize(
    ("scale", "momentum", "threshold", "eta"),
    [(3.0, -0.5, 2.0, 0.0), (3.0, 0.3, 1e9, 0.4), (0.5, 0.0, 0.5, 1.0), (4.0, -0.75, 6.0, 0.2)],
)
def test_it_is_the_algorithm_of_the_paper_on_denoised_predictions(scale, momentum, threshold, eta):
    guidance = AdaptiveProjectedGuidance(scale, momentum, threshold, eta)
    draw = BatchNoise((4, 1, 3, 3), dtype=torch.double)
    x = draw()
    state, running, shortened = guidance.start(x, 1), np.zeros((4, 9)), 0
    for index, t in enumerate((800, 600, 400, 200)):
        level, eps = LINEAR.level(t), draw()
        eps_null, x_s = eps + 0.5 * draw(), draw()
        denoised, denoised_null = (denoised_from(each, x, level) for each in (eps, eps_null))
        given, step = Predictions(denoised, denoised.unsqueeze(1), null=denoised_null), step_at(t, t - 200, index, 4)
        guided = guidance.guide(given, state, step)
        d_class, d_null = (each.flatten(1).numpy() for each in (denoised, denoised_null))
        running = d_class - d_null + momentum * running
        lengths = np.sqrt((running**2).sum(1, keepdims=True))
        shortened += int((lengths > threshold).sum())
        short = running * np.minimum(1, threshold / lengths)
        along = (short * d_class).sum(1, keepdims=True) / (d_class**2).sum(1, keepdims=True) * d_class
        expected = d_class + (scale - 1) * (short - along + eta * along)
        np.testing.assert_allclose(guided.denoised.flatten(1).numpy(), expected, rtol=0, atol=1e-9)
        state, x = update(guidance, state, step, x, x_s, given), x_s
    assert (shortened > 0) == (threshold < 1e9)


@pytest.mark.parametrize("scale", [0.0, 2.0, 5.0])
def test_without_momentum_threshold_and_projection_it_is_classifier_free_guidance(scale):
    plain = AdaptiveProjectedGuidance(scale, momentum=0.0, norm_threshold=math.inf, eta=1.0)
    runs = [
        trajectory(FOUR, guidance, [0], Sampler(50), BatchNoise((64, 2), dtype=torch.double), 2).x_0
        for guidance in (plain, ClassifierFreeGuidance(scale))
    ]
    torch.testing.assert_close(*runs, rtol=0, atol=1e-9)


def test_at_scale_1_it_is_the_class_bit_for_bit():
    runs = [
        trajectory(FOUR, guidance, [0], Sampler(50), BatchNoise((64, 2)), 2).x_0
        for guidance in (AdaptiveProjectedGuidance(1.0), Unguided())
    ]
    assert torch.equal(*runs)


def test_equal_predictions_and_a_black_image_are_no_trouble():
    zero = torch.zeros(2, 3)
    guidance, step = AdaptiveProjectedGuidance(), step_at(500, 0, count=1)
    assert torch.equal(guidance.guide(Predictions(zero, zero, null=zero), guidance.start(zero, 1), step).denoised, zero)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"momentum": -1.0}, r"momentum must be in \(-1, 1\)"),
        ({"norm_threshold": 0.0}, "norm_threshold must be positive"),
        ({"norm_threshold": math.nan}, "norm_threshold must be positive"),
        ({"eta": 1.5}, "eta must be in .0, 1."),
    ],
)
def test_settings_out_of_range_are_refused(setting, reason):
    with pytest.raises(SettingError, match=reason):
        AdaptiveProjectedGuidance(**setting)
