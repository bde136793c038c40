"""Contrastive classifier-free guidance: its formula on eps predictions, its limits, and what it does on a mixture."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from by_hand import LINEAR, step_at
from mixture import BatchNoise, GaussianMixture, trajectory

from dng_lightning.guidance import ContrastiveCFG
from dng_lightning.interfaces import Guided, Predictions
from dng_lightning.sampling import Sampler

AT = step_at()
TO_DENOISED = -AT.level.sigma / AT.level.alpha  # of an eps prediction about x_t = 0


def guide_eps(guidance: ContrastiveCFG, given: Predictions) -> Guided:
    """What it makes of eps predictions, on which the paper defines it."""
    parts = {name: TO_DENOISED * getattr(given, name) for name in ("denoised", "negatives", "null")}
    guided = guidance.guide(replace(given, **parts), None, AT)
    return replace(guided, denoised=guided.denoised / TO_DENOISED)


def test_contrastive_guidance_is_its_formula():
    noise = BatchNoise((5, 3, 4, 4), dtype=torch.double)
    null = noise()
    toward, away = 0.3 * noise(), torch.stack([0.2 * noise() for _ in range(2)], 1)
    given = Predictions(null + toward, null.unsqueeze(1) + away, null=null)
    guided = guide_eps(ContrastiveCFG(7.5, tau=0.2), given)
    for image in range(5):
        null, of_class, forbidden = (x[image].numpy() for x in (given.null, given.denoised, given.negatives))
        pull = 7.5 * 2 / (1 + math.exp(-0.2 * ((of_class - null) ** 2).sum()))
        repel = [math.exp(-0.2 * ((negative - null) ** 2).sum()) for negative in forbidden]
        pushes = [7.5 * 2 * e / (1 + e) for e in repel]
        expected = null + pull * (of_class - null) - sum(w * (n - null) for w, n in zip(pushes, forbidden, strict=True))
        np.testing.assert_allclose(guided.denoised[image], expected, rtol=0, atol=1e-12)
        assert float(guided.scale[image]) == pytest.approx(sum(pushes))


def test_the_contrastive_push_fades_as_predictions_separate_and_is_never_longer_than_its_bound():
    radii = torch.linspace(0.01, 5, 500, dtype=torch.double)
    zero = torch.zeros(500, 1, dtype=torch.double)
    for scale, tau in ((1.0, 0.2), (7.5, 4.0)):
        guided = guide_eps(ContrastiveCFG(scale, tau), Predictions(zero, radii.view(500, 1, 1), null=zero))
        push = -guided.denoised[:, 0]
        assert (guided.scale.diff() < 0).all()
        assert guided.scale[0] == pytest.approx(scale, rel=1e-3)
        assert float(push.max()) == pytest.approx(0.556 * scale / tau**0.5, rel=1e-3)
        assert float(tau * radii[push.argmax()] ** 2) == pytest.approx(0.739, abs=0.04)


def test_the_contrastive_pull_rises_from_one_scale_to_two():
    for radius, factor in ((1e-4, 1.0), (1.0, 2 / (1 + math.exp(-3))), (100.0, 2.0)):
        zero = torch.zeros(1, 2)
        given = Predictions(torch.tensor([[radius, 0.0]]), zero.unsqueeze(1), null=zero)
        torch.testing.assert_close(guide_eps(ContrastiveCFG(2.0, 3.0), given).denoised, 2 * factor * given.denoised)


def test_tau_goes_with_one_over_the_number_of_coordinates():
    # the same difference in each of D coordinates: the same factors
    factors = [
        guide_eps(
            ContrastiveCFG(2.0, 100 / d), Predictions(torch.zeros(1, d), torch.full((1, 1, d), 0.1), null=zero)
        ).scale
        for d, zero in ((d, torch.zeros(1, d)) for d in (4, 100, 1000))
    ]
    assert float(factors[0]) == pytest.approx(4 / (1 + math.e))
    torch.testing.assert_close(factors[1:], factors[:1] * 2)


def test_on_a_mixture_the_contrastive_push_moves_the_kept_mode_less_the_greater_tau_and_leaks_more():
    two = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0]], 0.3)
    drawn = [
        trajectory(two, ContrastiveCFG(1.0, tau), [0], Sampler(50), BatchNoise((512, 2))).x_0[:, 0]
        for tau in (0.0, 0.1, 0.3, 3.0)
    ]
    displaced = [float(x[x > 0].mean()) - 1.5 for x in drawn]
    leaks = [float((x < 0).double().mean()) for x in drawn]
    # of 4,096 images: 2.9, .96, .19 and 0 at leaks of .12, .125, .14 and .31
    assert displaced[0] == pytest.approx(2.92, abs=0.06)
    assert all(less < 0.5 * more for more, less in pairwise(displaced))
    assert leaks[-1] > leaks[0] + 0.12  # of 512 images: 5 standard errors
