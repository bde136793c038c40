"""CFG++ (Chung et al., ICLR 2025, arXiv 2406.08070, algorithm 2).

Denoises with the guided prediction and goes back to the next level with the unconditional one:

    eps_hat = eps_null + scale * (eps_+ - eps_null)
    x_s     = alpha_s x0_hat(x_t, eps_hat) + sigma_s eps_null              (DDIM; the sampler's eta 0)

At eta > 0 the drawn noise takes its share of sigma_s, as in any other step.
"""

from dataclasses import dataclass

import torch

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guided, Predictions, Step
from dng_lightning.guidance.classifier_free import TowardWanted, null_of


@dataclass(frozen=True)
class CFGPlusPlus(TowardWanted):
    """Classifier-free guidance that stays between the two predictions.

    Attributes:
        scale: their lambda, in [0, 1]; 0 is unconditional. 0.6 is about as strong as classifier-free guidance at 7.5.
    """

    scale: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1:
            raise SettingError(f"scale of CFG++ must be between 0 and 1; got {self.scale}")

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """Between the two predictions; the noise to go back with is the unconditional one."""
        base, null = predictions.base, null_of(predictions)
        eps = torch.lerp(null, base, self.scale)
        return Guided(eps, base.new_full((len(base),), self.scale), renoise=null)
