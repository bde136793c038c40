"""Negative prompting as diffusers and the A1111 web UI do it: the forbidden condition in the unconditional one's place.

    eps_hat = eps_- + scale (eps_+ - eps_-) = eps_+ - (scale - 1) (eps_- - eps_+)

The second form says what it is: DNG's negative prompting (``negative_prompting.py``) about the wanted condition, with
one less than the scale. With several forbidden conditions their differences are summed, as there:

    eps_hat = eps_+ - (scale - 1) sum_k (eps_k - eps_+)

Without a wanted condition eps_+ is the unconditional prediction, and the form still is negative prompting at scale - 1.
"""

from dataclasses import dataclass

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance, Guided, Predictions, Step


@dataclass(frozen=True)
class SwappedNegative(Guidance):
    """Classifier-free guidance from the forbidden condition to the wanted one; it knows no unconditional prediction.

    Attributes:
        scale: their guidance scale w, >= 1; 1 is the wanted condition alone, or unguided where none is wanted.

    Raises:
        SettingError: the scale is below 1, where the images would be drawn to what is forbidden, or not finite.
    """

    scale: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.scale < float("inf"):
            raise SettingError(f"scale must be at least 1 and finite: 1 is no push here; got {self.scale}")

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction, less the scaled differences; ``Guided.scale`` is scale - 1."""
        base, scale = predictions.base, self.scale - 1
        away = (predictions.negatives - base.unsqueeze(1)).sum(1)
        return Guided(base - scale * away, base.new_full((len(base),), scale))
