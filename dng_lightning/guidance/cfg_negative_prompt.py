"""Negative prompting as diffusers and the A1111 web UI do it: the negative prompt in the place of the empty one.

    D_hat = D_- + scale (D_+ - D_-) = D_+ - (scale - 1) (D_- - D_+)

The second form is DNG's negative prompting (``negative_prompting.py``) about the prompt, with one less than the scale.
With several forbidden conditions their differences are summed, as there. Without a class or prompt D_+ is the
unconditional prediction.
"""

from dataclasses import dataclass

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Predictions, Step


@dataclass(frozen=True)
class CFGNegativePrompt(Guidance):
    """Classifier-free guidance from the negative prompt to the prompt; it has no unconditional prediction.

    Attributes:
        scale: their guidance scale w, >= 1; 1 is the prompt alone. ``Guided.scale`` is scale - 1.

    Raises:
        SettingError: the scale is below 1, where the images would be drawn to what is forbidden, or not finite.
    """

    scale: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.scale < float("inf"):
            raise SettingError(f"scale must be at least 1 and finite: 1 is no push here; got {self.scale}")

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction, less the scaled differences."""
        base, scale = predictions.denoised, self.scale - 1
        return Guided(base - scale * predictions.differences.sum(1), base.new_full((len(base),), scale))
