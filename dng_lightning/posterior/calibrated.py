"""A posterior from the tracked evidence by a logistic fit at each noise level (``calibration.py``).

    logit p(c | x_t) = slope(log SNR) L(x_t) + shift(log SNR),        L = sum of the log ratios so far

For exact predictions log p = log prior + L. The errors of a trained model's predictions count as evidence against the
class, so that L drifts down at the noise levels where the image takes shape. The shift compensates for that level by
level; temperature and offset do so evenly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dng_lightning.errors import check_at_least, check_in
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.kernel import NoiseLevel
from dng_lightning.posterior.base import Posterior, at_most, mask_inactive, state_dtype
from dng_lightning.posterior.calibration import Calibration, check_calibration, slope_and_shift
from dng_lightning.posterior.log_ratio import log_ratio, without_push

LARGEST = 1e4  # bound on the log ratio in nats, so that sums stay finite
NO_NOISE = NoiseLevel(1.0, 0.0, 0)


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

    calibration: Calibration = "checkpoint"
    p_max: float = 0.99
    guidance_shift_weight: float = 0.0
    divergence: int = 0

    def __post_init__(self) -> None:
        check_in("(0, 1)", p_max=self.p_max)
        check_in("[0, 1]", guidance_shift_weight=self.guidance_shift_weight)
        check_at_least(0, divergence=self.divergence)
        check_calibration(self.calibration)

    def needs(self, state: Tensor | None = None, step: Step | None = None) -> Needs:
        """The predictions of the conditions, and their divergence for samplers with eta < 1."""
        return Needs(negatives=True, tracks=True, divergence=self.divergence)

    def start(self, x_T: Tensor, conditions: int) -> Tensor:
        """No evidence, (B, K)."""
        slope_and_shift(self.calibration, NO_NOISE)  # refuses missing rows before any network evaluation
        return torch.zeros(len(x_T), conditions, dtype=state_dtype(x_T.device), device=x_T.device)

    def log_prob(self, predictions: Predictions, state: Tensor, step: Step) -> Tensor:
        """The calibrated log p(c_k | x_t) of L."""
        return self.read(state, step.level, predictions.active)

    def read(self, log_ratio: Tensor, level: NoiseLevel, active: Tensor | None = None) -> Tensor:
        """The calibrated log p(c_k | x_t), (B, K), of log ratios (B, K) at a level."""
        slope, shift = slope_and_shift(self.calibration, level)
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
        slope, shift = slope_and_shift(self.calibration, level)
        bound = (p.to(state.dtype).logit() - shift) / slope if slope > 0 else state
        return state.maximum(bound.clamp(-LARGEST, LARGEST))
