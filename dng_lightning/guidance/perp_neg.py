"""Perp-Neg (Armandpour et al., "Re-imagine the Negative Prompt Algorithm", 2023, arXiv 2304.04968).

Only the part of the push that is perpendicular to the direction of the prompt is kept, so that a forbidden condition
that overlaps with the prompt does not weaken it. With d_+ = D_+ - D_null and d_k = D_k - D_null,

    D_hat = D_null + cfg_scale d_+ - scale sum_k (d_k - <d_k, d_+> / |d_+|^2 d_+)

The inner product and the norm are over all coordinates of an image. The paper scales the whole bracket by w and each
forbidden condition in it by w_k: cfg_scale = w and scale = w w_k. Without a class or prompt there is no direction to be
perpendicular to, and the method is ``SignedNegative``, which is then plain negative prompting.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from dng_lightning.guidance.signed_negative import SignedNegative, null_differences
from dng_lightning.interfaces import Guided, Predictions, Step


@dataclass(frozen=True)
class PerpNeg(SignedNegative):
    """``SignedNegative`` without the part of the push that lies along the pull.

    Attributes:
        scale: strength of the push, >= 0; 0 is classifier-free guidance, or unguided without a class or prompt.
        cfg_scale: strength of the pull, >= 0; 1 is the prediction of the class or prompt.
    """

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The unconditional prediction, the scaled pull, and the scaled perpendicular push."""
        null, toward, away = null_differences(predictions)
        direction = F.normalize(toward.flatten(1), dim=1).unsqueeze(1)  # 0 without a pull
        along = (away.flatten(2) * direction).sum(2, keepdim=True) * direction
        across = away - along.view_as(away)
        denoised = null + self.cfg_scale * toward - self.scale * across.sum(1)
        return Guided(denoised, null.new_full((len(null),), self.scale))
