"""The fit of a calibration, on evidence whose meaning is known."""

import math

import numpy as np
import pytest
import torch
from mixture import BatchNoise, GaussianMixture, ring
from torch import Tensor
from tracking import LINEAR

from dng_lightning.errors import SettingError
from dng_lightning.guidance import Unguided
from dng_lightning.kernel import NoiseLevel
from dng_lightning.posterior import CalibratedPosterior
from dng_lightning.posterior.base import at_most
from dng_lightning.posterior.calibration import fit_calibration
from dng_lightning.sampling import PassiveTracking, Sampler, sample

KNOTS = [LINEAR.level(max(t, 1)).log_snr for t in range(1000, -1, -100)]  # as the calibration writer takes them
LEVELS = LINEAR.levels(100)[:-1]
FIVE = GaussianMixture(LINEAR, ring(1.5, 5, 2), 0.3)
PRIOR = 0.2


class Spoiled(GaussianMixture):
    """The five modes by eps predictions that are off by .3 in each coordinate as soon as they are told a class."""

    def __init__(self) -> None:
        super().__init__(LINEAR, FIVE.means.tolist(), 0.3)

    def denoised(self, x_t: Tensor, level: NoiseLevel | int, class_labels: Tensor | None = None) -> Tensor:
        level = self.level(level)
        labels = torch.full((len(x_t),), self.null_class) if class_labels is None else class_labels
        off = 0.3 * level.sigma / level.alpha * (labels != self.null_class)
        return super().denoised(x_t, level, labels) - off.to(x_t).unsqueeze(1)


def level_of(log_snr: float) -> NoiseLevel:
    """A level of a variance-preserving path."""
    share = 1 / (1 + math.exp(-log_snr))
    return NoiseLevel(math.sqrt(share), math.sqrt(1 - share), 0)


def gathered(mixture: GaussianMixture, count: int = 1024, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Evidence (N, S, K) for each of five classes before each step to unguided images, and what these became (N, K)."""
    tracking = PassiveTracking([CalibratedPosterior([[0.0, 1.0, 0.0]])])
    x_0 = sample(mixture.shared(range(5)), Unguided(), LINEAR, BatchNoise((count, 2), seed), Sampler(100), [tracking])
    return tracking.state(0), mixture.nearest(x_0).unsqueeze(1) == torch.arange(5)


def brier(p: Tensor, became: Tensor) -> float:
    return float((p - became.double()).square().mean())


def test_the_fit_recovers_the_slopes_and_shifts_that_made_the_labels():
    generator = torch.Generator().manual_seed(0)
    log_snrs, knots = list(range(-10, 11)), [-10, 0, 10]
    slope, shift = np.interp(log_snrs, knots, [0.5, 1.5, 1.0]), np.interp(log_snrs, knots, [1.0, -1.0, -2.0])
    # a logit that says all there is to say at each level, the labels drawn from it, and the evidence that it is made of
    logits = 2 * torch.randn(4000, 1, 2, generator=generator, dtype=torch.double) - 0.5
    became = torch.rand(4000, 2, generator=generator) < logits.sigmoid()[:, 0]
    evidence = (logits - torch.tensor(shift).view(1, -1, 1)) / torch.tensor(slope).view(1, -1, 1)
    rows = torch.tensor(fit_calibration(evidence, [level_of(x) for x in log_snrs], became, knots))
    assert rows[:, 0].tolist() == knots
    # standard errors of about .03 of 8,000 labels, and the preference for evenness
    torch.testing.assert_close(rows[:, 1], torch.tensor([0.5, 1.5, 1.0]), rtol=0, atol=0.1)
    torch.testing.assert_close(rows[:, 2], torch.tensor([1.0, -1.0, -2.0]), rtol=0, atol=0.1)


def test_levels_between_and_beyond_the_knots_weigh_as_they_are_interpolated():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, 1, 1, generator=generator, dtype=torch.double)
    became = torch.rand(4000, 1, generator=generator) < logits.sigmoid()[:, 0]
    # slope and shift are 2 and 1 at a log SNR of -2, 1 and -1 at 2, and half-way at 0; constant beyond
    lines = {-math.inf: (2.0, 1.0), -2: (2.0, 1.0), 0: (1.5, 0.0), 2: (1.0, -1.0), 5: (1.0, -1.0)}
    levels = [NoiseLevel(0.0, 1.0, 1.0) if x == -math.inf else level_of(x) for x in lines]  # the first is pure noise
    evidence = torch.cat([(logits - shift) / slope for slope, shift in lines.values()], 1)
    rows = fit_calibration(evidence, levels, became, [-2, 2])
    assert [*rows[0], *rows[1]] == pytest.approx([-2, 2, 1, 2, 1, -1], abs=0.1)


@pytest.fixture(scope="module")
def exact() -> tuple[list[list[float]], Tensor, Tensor]:
    """The calibration of exact predictions, by half of the images, and the other half's evidence and labels."""
    evidence, became = gathered(FIVE)
    return fit_calibration(evidence[:512], LEVELS, became[:512], KNOTS), evidence[512:], became[512:]


def test_the_calibration_of_exact_predictions_is_the_theorys_while_little_is_known(exact):
    rows = exact[0]
    for _, slope, shift in rows[:6]:
        # d logit p / d log p = 1 / (1 - p); labels of 512 images
        assert slope == pytest.approx(1 / (1 - PRIOR), abs=0.12)
        assert shift == pytest.approx(math.log(PRIOR / (1 - PRIOR)), abs=0.05)
    # closer to the data L of a class ends at -log prior = 1.6, where p is 1 and its logit without end
    assert rows[-1][1] * -math.log(PRIOR) + rows[-1][2] > 3
    assert rows[-1][1] > 1.5


def test_exact_predictions_lose_nothing_by_their_calibration(exact):
    rows, evidence, became = exact
    calibrated, start = CalibratedPosterior(rows), math.log(PRIOR)
    for at in range(0, 100, 9):
        tracked = brier(at_most(start + evidence[:, at], 0.99).exp(), became)
        assert brier(calibrated.read(evidence[:, at], LEVELS[at]).exp(), became) < tracked + 0.002


def test_a_calibration_makes_up_for_predictions_that_make_the_tracked_posterior_drift():
    evidence, became = gathered(Spoiled())
    posterior = CalibratedPosterior(fit_calibration(evidence[:512], LEVELS, became[:512], KNOTS))
    evidence, became = evidence[512:], became[512:]
    tracked = [at_most(math.log(PRIOR) + at, 0.99).exp() for at in evidence.unbind(1)]
    calibrated = [posterior.read(evidence[:, at], level).exp() for at, level in enumerate(LEVELS)]
    # a fifth of the images are of each class, but the tracked posterior ends at far less
    assert float(tracked[-1].mean()) < 0.6 * PRIOR
    for p in calibrated:
        assert float(p.mean()) == pytest.approx(PRIOR, abs=0.05)
    gains = [brier(before, became) - brier(after, became) for before, after in zip(tracked, calibrated, strict=True)]
    assert min(gains) > -0.002
    assert sum(gains) / len(gains) > 0.012
    assert gains[-1] > 0.05
    assert brier(calibrated[-1], became) < 0.02


def test_lightnings_inference_mode_is_no_hindrance_to_a_fit():
    generator = torch.Generator().manual_seed(0)
    levels, knots = [LINEAR.level(t) for t in (1000, 500, 1)], [KNOTS[0], KNOTS[-1]]
    for dtype in (torch.float32, torch.float64):
        with torch.inference_mode():
            evidence = torch.randn(200, 3, 1, generator=generator, dtype=dtype)
            became = torch.rand(200, 1, generator=generator) < evidence[:, 0].sigmoid()
            rows = fit_calibration(evidence, levels, became, knots)
        assert rows == fit_calibration(evidence.clone(), levels, became.clone(), knots)
        assert rows[0][1] > 0.5


@pytest.mark.parametrize("became", [True, False])
def test_images_that_are_all_of_one_kind_calibrate_nothing(became):
    levels = [LINEAR.level(500), LINEAR.level(1)]
    with pytest.raises(SettingError, match=r"raise data\.n"):
        fit_calibration(torch.zeros(4, 2, 1), levels, torch.full((4, 1), became), [-9.0, 9.0])
