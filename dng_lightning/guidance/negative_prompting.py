"""Negative prompting with a constant scale, the form that Koulischer et al. (ICLR 2025) compare with.

    D_hat = D - scale * sum_k (D_k - D)

It is Dynamic Negative Guidance with a constant posterior.
"""

from dataclasses import dataclass

from dng_lightning.errors import check_at_least
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Predictions, Step


@dataclass(frozen=True)
class NegativePrompting(Guidance):
    """Pushes every image away from the forbidden conditions with the same strength at every step.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction, less the scaled differences."""
        base = predictions.denoised
        return Guided(base - self.scale * predictions.differences.sum(1), base.new_full((len(base),), self.scale))
