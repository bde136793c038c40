"""A posterior from the tracked evidence by a logistic fit at each noise level (Platt scaling, 1999).

    logit p(c | x_t) = slope(log SNR) L(x_t) + shift(log SNR),        L = sum of the log ratios so far

For exact predictions log p = log prior + L. The errors of a trained model's predictions count as evidence against the
class, so that L drifts down at the noise levels where the image takes shape. The shift compensates for that level by
level; temperature and offset do so evenly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dng_lightning.errors import SettingError, check_0_to_1
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.kernel import NoiseLevel
from dng_lightning.posterior.base import Posterior, at_most, check_p_max, mask_inactive, state_dtype
from dng_lightning.posterior.log_ratio import log_ratio, without_push

LARGEST = 1e4  # bound on the log ratio in nats, so that sums stay finite

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class CalibratedPosterior(Posterior):
    """Sums the evidence of each condition, and computes p(c_k | x_t) from the sum. The state is L, (B, K).

    Attributes:
        calibration: rows [log SNR, slope, shift] of increasing log SNR; linear in between, constant beyond.
            "checkpoint" for the rows of ``calibration.yaml`` in the checkpoint's folder (made by ``dng test --config
            calibrate.yaml``). Without that file, and for None, the posterior is a ``TrackedPosterior`` of default
            settings.
        p_max: greatest sum of the posteriors, in (0, 1).
        guidance_shift_weight: share of the guidance's push that counts as evidence, in [0, 1].
        divergence: number of probes for the divergence term at eta < 1, >= 0; see ``TrackedPosterior``.

    Raises:
        SettingError: the calibration is malformed, or a setting is out of its range.
    """

    calibration: Rows | Literal["checkpoint"] | None = "checkpoint"
    p_max: float = 0.99
    guidance_shift_weight: float = 0.0
    divergence: int = 0

    def __post_init__(self) -> None:
        check_p_max(self.p_max)
        check_0_to_1(guidance_shift_weight=self.guidance_shift_weight)
        if self.divergence < 0:
            raise SettingError(f"divergence must be at least 0; got {self.divergence}")
        if self.calibration is None or isinstance(self.calibration, str):
            if self.calibration not in (None, "checkpoint"):
                raise SettingError(f"calibration must be rows of numbers, checkpoint or null; got {self.calibration}")
            return
        rows = [list(row) for row in self.calibration]
        if not rows or any(len(row) != 3 or not all(isinstance(x, int | float) for x in row) for row in rows):
            raise SettingError("calibration needs rows of three numbers: log SNR, slope, shift; or checkpoint or null")
        if not all(math.isfinite(x) for row in rows for x in row):
            raise SettingError("calibration needs rows of three finite numbers: log SNR, slope, shift")
        if any(after[0] <= before[0] for before, after in pairwise(rows)):
            raise SettingError("the log SNR of a calibration must rise from row to row")

    def needs(self, state: Tensor | None = None, step: Step | None = None) -> Needs:
        """The predictions of the conditions, and their divergence for samplers with eta < 1."""
        return Needs(negatives=True, tracks=True, divergence=self.divergence)

    def start(self, x_T: Tensor, conditions: int) -> Tensor:
        """No evidence, (B, K)."""
        self._rows()  # refuses missing rows before any network evaluation
        return torch.zeros(len(x_T), conditions, dtype=state_dtype(x_T.device), device=x_T.device)

    def log_prob(self, predictions: Predictions, state: Tensor, step: Step) -> Tensor:
        """The calibrated log p(c_k | x_t) of L."""
        return self.read(state, step.level, predictions.active)

    def read(self, log_ratio: Tensor, level: NoiseLevel, active: Tensor | None = None) -> Tensor:
        """The calibrated log p(c_k | x_t), (B, K), of log ratios (B, K) at a level."""
        slope, shift = self.at(level)
        return at_most(mask_inactive(functional.logsigmoid(slope * log_ratio + shift), active), self.p_max)

    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Tensor:
        """L plus the evidence of the step; unchanged where a condition is not active."""
        x_s = without_push(x_t, x_s, step, predictions, guided, self.guidance_shift_weight)
        ratio = (state + log_ratio(step, x_t, x_s, predictions, state)).clamp(-LARGEST, LARGEST)
        return ratio if predictions.active is None else torch.where(predictions.active, ratio, state)

    def at_least(self, state: Tensor, p: Tensor, level: NoiseLevel, active: Tensor) -> Tensor:
        """See ``Posterior.at_least``; ``read`` applies p_max."""
        slope, shift = self.at(level)
        return (
            state if slope <= 0 else state.maximum((p.to(state.dtype).logit() - shift) / slope).clamp(-LARGEST, LARGEST)
        )

    def at(self, level: NoiseLevel) -> tuple[float, float]:
        """Slope and shift at a level.

        Raises:
            SettingError: the rows of the checkpoint's folder are not loaded.
        """
        log_snr, slope, shift = zip(*self._rows(), strict=True)
        return float(np.interp(level.log_snr, log_snr, slope)), float(np.interp(level.log_snr, log_snr, shift))

    def _rows(self) -> Rows:
        if self.calibration is None:
            raise SettingError("calibration null has no rows: take a TrackedPosterior")
        if isinstance(self.calibration, str):
            raise SettingError("calibration: checkpoint needs the checkpoint's folder: give rows, or use dng predict")
        return self.calibration


def fit_calibration(
    log_ratio: Tensor, levels: Sequence[NoiseLevel], became: Tensor, knots: Sequence[float]
) -> list[list[float]]:
    """Fit a calibration to the final labels of unguided images, over all levels and conditions together.

    Maximum likelihood, with a roughness penalty of the weight of about one image on slopes and shifts.

    Args:
        log_ratio: L of each condition at each level, (N, S, K).
        levels: those levels, (S,).
        became: whether the final image is of the condition, bool (N, K).
        knots: log SNR of the fitted rows, increasing.

    Returns:
        Rows [log SNR, slope, shift].

    Raises:
        SettingError: none or all of the images are of the conditions.
    """
    share = float(became.double().mean())
    if not 0 < share < 1:
        raise SettingError("a calibration needs images that are of the classes and others: raise data.num_samples")
    with torch.inference_mode(False), torch.enable_grad():  # Lightning calls this in inference mode
        x, y = log_ratio.double().clone(), became.double().unsqueeze(1).expand_as(log_ratio).clone()
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
