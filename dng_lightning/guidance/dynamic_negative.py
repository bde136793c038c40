"""Dynamic Negative Guidance (Koulischer et al., ICLR 2025, arXiv 2410.14398).

The score of p(x | not c) is the unconditional one, pushed away from c by the odds that the image is becoming c:

    D_hat = D - scale * sum_k p_k / (1 - sum_j p_j) * (D_k - D)

with p_k = p(c_k | x_t) by any posterior (``dng_lightning.posterior``); the paper tracks it along the chain. At
scale = 1 this is exact for exact predictions and posteriors; negative prompting is the case of a constant posterior.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dng_lightning.errors import check_at_least, check_in
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, per_image
from dng_lightning.posterior import Posterior, TrackedPosterior
from dng_lightning.posterior.base import active_above, odds


@dataclass(frozen=True)
class DynamicNegativeGuidance(Guidance):
    """Pushes an image away from the forbidden conditions by the odds that it is becoming one of them.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided, 1 is the theory's.
        posterior: how likely it is that the image becomes forbidden.
        skip_below: conditions with a posterior below this are not evaluated, in [0, 1). A tracked posterior is constant
            from then on, which adds at most about this share of forbidden images (optional stopping theorem).

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.0
    posterior: Posterior = TrackedPosterior()
    skip_below: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)
        check_in("[0, 1)", skip_below=self.skip_below)

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """The predictions of the forbidden conditions, and what the posterior needs."""
        needs = Needs(negatives=True) | self.posterior.needs(state, step)
        active = active_above(self.posterior, self.skip_below, state, step)
        return needs if active is None else replace(needs, active=active)

    def start(self, x_T: Tensor, conditions: int) -> Any:
        """The posterior's state."""
        return self.posterior.start(x_T, conditions)

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """The base prediction, less the differences scaled by the odds."""
        log_p = self.posterior.log_prob(predictions, state, step)
        scales = self.scale * odds(log_p)
        push = (per_image(scales, predictions.negatives) * predictions.differences).sum(1)
        base = predictions.denoised
        return Guided(base - push, scales.sum(1), log_p.exp(), smooth=base)

    def update(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> Any:
        """The posterior's state after the step."""
        return self.posterior.update(state, step, x_t, x_s, predictions, guided)
