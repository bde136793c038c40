"""Negative prompting with a constant scale, the form that Koulischer et al. (ICLR 2025) compare with.

eps_hat = eps - scale * sum_k (eps_k - eps)
"""

from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance, Guided, Predictions, Step


class NegativePrompting(Guidance[None]):
    """Pushes every image away from the forbidden conditions, always equally hard.

    Args:
        scale: strength of the push, >= 0; 0 is unguided.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not 0 <= scale < float("inf"):
            raise SettingError(f"scale must be at least 0; got {scale}")
        self.scale = scale

    def start(self, x_T: Tensor, classes: int) -> None:
        """Nothing to remember."""

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction, less the scaled differences."""
        base = predictions.base
        away = (predictions.negatives - base.unsqueeze(1)).sum(1)
        return Guided(base - self.scale * away, base.new_full((len(base),), self.scale))
