"""The posterior of a probe: a small head that reads p(c | x_t) from the diffusion network's own features.

The features come with the base prediction, so that the posterior needs no network evaluation. It depends on x_t only,
not on the guidance of the earlier steps. It is known before the forbidden conditions are evaluated, which can be
skipped where it is small (``skip_below`` of ``DynamicNegativeGuidance``).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from dng_lightning.errors import SettingError
from dng_lightning.interfaces import Needs, Predictions, Step
from dng_lightning.posterior.base import Posterior, at_most, check_p_max, mask_inactive, state_dtype


@dataclass(frozen=True)
class ProbePosterior(Posterior):
    """p(c_k | x_t) of a probe, for any sampler.

    Attributes:
        p_max: greatest sum of the posteriors, in (0, 1).
        shift: added to the log odds of each condition, in nats: log of how much greater the odds of the forbidden
            classes are in the model's images than in those that the probe was trained on; 0 for the same shares.
    """

    reads_predictions: ClassVar[bool] = True

    p_max: float = 0.99
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_p_max(self.p_max)
        if not abs(self.shift) < float("inf"):
            raise SettingError(f"shift must be finite; got {self.shift}")

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The probe."""
        return Needs(probe=True)

    def log_prob(self, predictions: Predictions, state: None, step: Step) -> Tensor:
        """The log posterior of the probe."""
        if predictions.probed is None:
            raise SettingError("ProbePosterior needs a probe: wrap the predictor in WithProbe")
        log_p = mask_inactive(predictions.probed.to(state_dtype(predictions.probed.device)), predictions.active)
        if self.shift:
            log_p = functional.logsigmoid(log_p - (-log_p.expm1()).log() + self.shift)
        return at_most(log_p, self.p_max)
