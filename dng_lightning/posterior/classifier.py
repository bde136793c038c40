"""The posterior of a noise-conditional classifier."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dng_lightning.errors import check_in
from dng_lightning.interfaces import Needs, Predictions, Step, provided
from dng_lightning.posterior.base import Posterior, at_most, mask_inactive


@dataclass(frozen=True)
class ClassifierPosterior(Posterior):
    """p(c_k | x_t) of a noise-conditional classifier of the forbidden classes, for any sampler.

    Attributes:
        p_max: greatest sum of the posteriors, in (0, 1).
    """

    reads_predictions: ClassVar[bool] = True

    p_max: float = 0.99

    def __post_init__(self) -> None:
        check_in("(0, 1)", p_max=self.p_max)

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The classifier."""
        return Needs(classifier="posterior")

    def log_prob(self, predictions: Predictions, state: None, step: Step) -> Tensor:
        """The classifier's log p(c_k | x_t), bounded by p_max."""
        log_p = provided(predictions.log_posterior, "log_posterior")
        return at_most(mask_inactive(log_p, predictions.active), self.p_max)
