"""CFG++ (Chung et al., ICLR 2025, arXiv 2406.08070, algorithm 2).

Denoises with the guided prediction and goes to the next level with the unconditional one's noise:

    D_hat = D_null + scale * (D_+ - D_null)
    x_s   = alpha_s D_hat + sigma_s eps_null              (DDIM; the sampler's eta 0)

At eta > 0 the drawn noise takes its share of sigma_s, as in any other step.
"""

from dataclasses import dataclass

import torch

from dng_lightning.errors import SettingError
from dng_lightning.guidance.classifier_free import PositiveGuidance
from dng_lightning.guidance.signed_negative import require_null
from dng_lightning.interfaces import Guided, Predictions, Step


@dataclass(frozen=True)
class CFGPlusPlus(PositiveGuidance):
    """Classifier-free guidance that stays between the two predictions.

    Attributes:
        scale: their lambda, in [0, 1]; 0 is unconditional. 0.6 is about as strong as classifier-free guidance at 7.5.
    """

    scale: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1:
            raise SettingError(f"scale of CFG++ must be between 0 and 1; got {self.scale}")

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """Between the two predictions; the noise to go on with is the unconditional one's."""
        base, null = predictions.denoised, require_null(predictions)
        return Guided(torch.lerp(null, base, self.scale), base.new_full((len(base),), self.scale), renoise=null)
