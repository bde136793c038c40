"""Perp-Neg (Armandpour et al., "Re-imagine the Negative Prompt Algorithm", 2023, arXiv 2304.04968).

Pushes only across the wanted direction, so that a forbidden condition that overlaps with the wanted one takes nothing
from it. With D_+ = eps_+ - eps_null and D_k = eps_k - eps_null,

    eps_hat = eps_null + wanted_scale D_+ - scale sum_k (D_k - <D_k, D_+> / |D_+|^2 D_+)

The inner product and the norm are over all coordinates of an image. The paper scales the whole bracket by w and each
forbidden condition in it by w_k: wanted_scale = w and scale = w w_k. Without a wanted condition there is no direction
to be perpendicular to, and the push is the signed form's (``signed_negative.py``), that is plain negative prompting.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from dng_lightning.guidance.base import Guided, Predictions, Step
from dng_lightning.guidance.signed_negative import SignedNegative, differences


@dataclass(frozen=True)
class PerpNeg(SignedNegative):
    """The signed form, its push less what lies along the pull.

    Attributes:
        scale: strength of the push, >= 0; 0 is classifier-free guidance, or unguided where nothing is wanted.
        wanted_scale: strength of the pull, >= 0; 1 is the wanted condition's own prediction.
    """

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The unconditional prediction, the scaled pull, and the scaled push across it."""
        null, toward, away = differences(predictions)
        direction = F.normalize(toward.flatten(1), dim=1).unsqueeze(1)  # 0 where nothing is wanted: all of it is across
        along = (away.flatten(2) * direction).sum(2, keepdim=True) * direction
        across = away - along.view_as(away)
        eps = null + self.wanted_scale * toward - self.scale * across.sum(1)
        return Guided(eps, null.new_full((len(null),), self.scale))
