"""Logistic calibration at each noise level, from evidence to probability (Platt scaling, 1999).

    logit p(c | x_t) = slope(log SNR) L(x_t) + shift(log SNR)

L is the sum of the log ratios so far (``CalibratedPosterior``), or the log odds of a probe (``ProbePosterior``).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dng_lightning.errors import SettingError
from dng_lightning.kernel import NoiseLevel

Rows = Sequence[Sequence[float]]
"""Rows [log SNR, slope, shift] of increasing log SNR; interpolated linearly, constant outside."""

Calibration = Rows | Literal["checkpoint"] | None


def check_calibration(calibration: Calibration) -> None:
    """Check the format of a calibration.

    Raises:
        SettingError: the calibration is malformed.
    """
    if calibration is None or isinstance(calibration, str):
        if calibration not in (None, "checkpoint"):
            raise SettingError(f"calibration must be rows of numbers, checkpoint or null; got {calibration}")
        return
    rows = [list(row) for row in calibration]
    if not rows or any(len(row) != 3 or not all(isinstance(x, int | float) for x in row) for row in rows):
        raise SettingError("calibration needs rows of three numbers: log SNR, slope, shift; or checkpoint or null")
    if not all(math.isfinite(x) for row in rows for x in row):
        raise SettingError("calibration needs rows of three finite numbers: log SNR, slope, shift")
    if any(after[0] <= before[0] for before, after in pairwise(rows)):
        raise SettingError("the log SNR of a calibration must rise from row to row")


def slope_and_shift(calibration: Calibration, level: NoiseLevel) -> tuple[float, float]:
    """Slope and shift at a level.

    Raises:
        SettingError: the rows of the checkpoint's folder are not loaded.
    """
    if calibration is None or isinstance(calibration, str):
        raise SettingError(
            "a calibration of the checkpoint's folder, or of none, is settled by dng predict: give rows, or use "
            "TrackedPosterior"
        )
    log_snr, slope, shift = zip(*calibration, strict=True)
    return float(np.interp(level.log_snr, log_snr, slope)), float(np.interp(level.log_snr, log_snr, shift))


def log_odds(log_p: Tensor) -> Tensor:
    """Log p / (1 - p) from log p, clamped to 30 nats, because fp32 probabilities round to 1."""
    return (log_p - (-log_p.expm1()).log()).clamp(-30, 30)


def fit_calibration(
    evidence: Tensor, levels: Sequence[NoiseLevel], became: Tensor, knots: Sequence[float]
) -> list[list[float]]:
    """Fit a calibration to the final labels of unguided images, jointly over all levels and conditions.

    Maximum likelihood, with a roughness penalty on slopes and shifts that weighs about as much as one image.

    Args:
        evidence: L of each condition at each level, (N, S, K).
        levels: the S noise levels.
        became: whether the final image belongs to the condition, bool (N, K).
        knots: log SNR of the fitted rows, increasing.

    Returns:
        Rows [log SNR, slope, shift].

    Raises:
        SettingError: none or all of the images belong to the conditions.
    """
    share = float(became.double().mean())
    if not 0 < share < 1:
        raise SettingError("a calibration needs images of the classes and others: raise data.num_samples")
    with torch.inference_mode(False), torch.enable_grad():  # Lightning calls this in inference mode
        x, y = evidence.double().clone(), became.double().unsqueeze(1).expand_as(evidence).clone()
        # weights of the knots at each level, by linear interpolation, (S, knots)
        log_snr = [level.log_snr for level in levels]
        weights = torch.tensor(np.stack([np.interp(log_snr, knots, hat) for hat in np.eye(len(knots))], 1))
        slope = torch.ones(len(knots), dtype=torch.double, requires_grad=True)
        shift = torch.full_like(slope, math.log(share / (1 - share)), requires_grad=True)
        optimizer = torch.optim.LBFGS([slope, shift], max_iter=500, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = (weights @ slope).view(1, -1, 1) * x + (weights @ shift).view(1, -1, 1)
            roughness = 1.25 * slope.diff().square().sum() + 0.05 * shift.diff().square().sum()
            value = functional.binary_cross_entropy_with_logits(logits, y) + roughness / len(x)
            value.backward()  # type: ignore[no-untyped-call]  # torch's
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch's
    rows = zip(knots, slope.tolist(), shift.tolist(), strict=True)
    return [[round(k, 3), round(a, 3), round(b, 3)] for k, a, b in rows]
