"""CFG++ (Chung et al., ICLR 2025, arXiv 2406.08070, algorithm 2).

Denoises with the guided prediction and renoises with the eps of the unconditional one:

    D_hat = D_null + scale * (D_+ - D_null)
    x_s   = alpha_s D_hat + sigma_s eps_null              (DDIM; the sampler's eta 0)

At eta > 0 the random noise takes its share of sigma_s, as in any other step.
"""

from dataclasses import dataclass

import torch

from dng_lightning.errors import check_in
from dng_lightning.guidance.classifier_free import PositiveGuidance
from dng_lightning.interfaces import Guided, Predictions, Step, provided


@dataclass(frozen=True)
class CFGPlusPlus(PositiveGuidance):
    """Classifier-free guidance that interpolates between the two predictions.

    Attributes:
        scale: lambda of the paper, in [0, 1]; 0 is unconditional. 0.6 corresponds to classifier-free guidance at 7.5.
    """

    scale: float = 0.6

    def __post_init__(self) -> None:
        check_in("[0, 1]", **{"scale of CFG++": self.scale})

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """Between the two predictions, renoised with the unconditional eps."""
        base, null = predictions.denoised, provided(predictions.null, "null")
        return Guided(torch.lerp(null, base, self.scale), base.new_full((len(base),), self.scale), renoise=null)
