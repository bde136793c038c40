"""Negative prompting as diffusers and the A1111 web UI do it: the negative prompt in the place of the empty one.

    D_hat = D_- + scale (D_+ - D_-) = D_+ - (scale - 1) (D_- - D_+)

The second form is ``NegativePrompting`` of scale - 1 with the prompt as its base. The differences of several forbidden
conditions are summed. Without a class or prompt D_+ is the unconditional prediction.
"""

from dataclasses import dataclass

from dng_lightning.errors import check_at_least
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Predictions, Step


@dataclass(frozen=True)
class CFGNegativePrompt(Guidance):
    """Classifier-free guidance from the negative prompt to the prompt, without an unconditional prediction.

    Attributes:
        scale: guidance scale w of the pipelines, >= 1; 1 is the prompt alone. ``Guided.scale`` is scale - 1.

    Raises:
        SettingError: the scale is not finite, or below 1, which would pull toward the negative prompt.
    """

    scale: float = 2.0

    def __post_init__(self) -> None:
        check_at_least(1, scale=self.scale)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction, less the scaled differences."""
        base, scale = predictions.denoised, self.scale - 1
        return Guided(base - scale * predictions.differences.sum(1), base.new_full((len(base),), scale))
