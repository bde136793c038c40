"""Dynamic Negative Guidance by a classifier's p(c_k | x_t) instead of a tracked one: what perfect tracking would buy.

A reference for tables, not a method: the classifier must have been trained on noisy images of the forbidden class.

    eps_hat = eps - scale * sum_k p_k / (1 - sum_j p_j) * (eps_k - eps)
"""

from dataclasses import dataclass

from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step
from dng_lightning.guidance.dynamic_negative import guided_by
from dng_lightning.posterior import capped


@dataclass(frozen=True)
class OracleNegativeGuidance(Guidance):
    """Dynamic Negative Guidance that is told the posterior; nothing is tracked, so any sampler will do.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided, 1 is the theory's.
        cap: greatest sum of the posteriors, in (0, 1); bounds the push by scale * cap / (1 - cap).
    """

    scale: float = 1.0
    cap: float = 0.99

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)
        if not 0 < self.cap < 1:
            raise SettingError(f"cap must be inside (0, 1); got {self.cap}")

    @property
    def needs(self) -> Needs:
        """The posterior too."""
        return Needs(posterior=True)

    @property
    def tracks_posterior(self) -> bool:
        """Yes: it is told one at each step."""
        return True

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction, less the differences scaled by the odds."""
        log_p = predictions.log_posterior
        if log_p is None:
            raise SettingError("OracleNegativeGuidance needs p(c | x_t): wrap the predictor in WithPosterior")
        return guided_by(capped(log_p, self.cap), predictions, self.scale)
