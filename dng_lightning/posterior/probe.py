"""The posterior of a probe: a small head that reads p(c | x_t) from the diffusion network's own features.

The features come with the base prediction, so that the posterior needs no network evaluation. It depends on x_t only,
not on the guidance of the earlier steps. It is known before the forbidden conditions are evaluated, which can be
skipped where it is small (``skip_below`` of ``DynamicNegativeGuidance``).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from dng_lightning.errors import check_in
from dng_lightning.interfaces import Needs, Predictions, Step, provided
from dng_lightning.posterior.base import Posterior, at_most, mask_inactive, state_dtype
from dng_lightning.posterior.calibration import Calibration, check_calibration, log_odds, slope_and_shift


@dataclass(frozen=True)
class ProbePosterior(Posterior):
    """p(c_k | x_t) of a probe, for any sampler.

    Attributes:
        p_max: greatest sum of the posteriors, in (0, 1).
        calibration: rows [log SNR, slope, shift] for the log odds, see ``CalibratedPosterior``; "checkpoint" for
            ``calibration.yaml`` in the probe's folder (``dng test --config calibrate.yaml --model.probe ...``); None
            for no calibration. For a probe trained on other class proportions than the model's, the one row
            [0, 1, shift] corrects the log odds by ``shift``.

    Raises:
        SettingError: the calibration is malformed, or a setting is out of its range.
    """

    reads_predictions: ClassVar[bool] = True

    p_max: float = 0.99
    calibration: Calibration = None

    def __post_init__(self) -> None:
        check_in("(0, 1)", p_max=self.p_max)
        check_calibration(self.calibration)

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The probe."""
        return Needs(probe=True)

    def log_prob(self, predictions: Predictions, state: None, step: Step) -> Tensor:
        """The log posterior of the probe."""
        probed = provided(predictions.probed, "probed")
        log_p = probed.to(state_dtype(probed.device))
        if self.calibration is not None:
            slope, shift = slope_and_shift(self.calibration, step.level)
            log_p = functional.logsigmoid(slope * log_odds(log_p) + shift)
        return at_most(mask_inactive(log_p, predictions.active), self.p_max)
