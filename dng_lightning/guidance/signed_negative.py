"""Negative prompting with a sign for each condition: A1111's AND with a negative weight, and VL-DNP (2510.26052).

    D_hat = D_null + cfg_scale (D_+ - D_null) - scale sum_k (D_k - D_null)

Both differences are to the unconditional prediction. Without a class or prompt D_+ = D_null: the term with cfg_scale is
0, and the method is ``NegativePrompting`` of the same scale.
"""

from dataclasses import dataclass

from torch import Tensor

from dng_lightning.errors import check_at_least
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, per_image, provided


@dataclass(frozen=True)
class SignedNegative(Guidance):
    """Pulls to the class or prompt and pushes from the forbidden conditions, each by a scale of its own.

    Attributes:
        scale: strength of the push, >= 0; 0 is classifier-free guidance, or unguided without a class or prompt.
        cfg_scale: strength of the pull, >= 0; 1 is the prediction of the class or prompt.
    """

    scale: float = 1.0
    cfg_scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale, cfg_scale=self.cfg_scale)

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The forbidden predictions and the unconditional one."""
        return Needs(negatives=True, null=True)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The unconditional prediction and the scaled differences."""
        null, toward, away = null_differences(predictions)
        denoised = null + self.cfg_scale * toward - self.scale * away.sum(1)
        return Guided(denoised, null.new_full((len(null),), self.scale))


def null_differences(predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """The unconditional prediction and what the conditions add to it.

    Returns:
        D_null (B, ...); D_+ - D_null (B, ...), 0 without a class or prompt; D_k - D_null (B, K, ...), 0 where a
        condition is not active.
    """
    null = provided(predictions.null, "null")
    away = predictions.negatives - null.unsqueeze(1)
    if predictions.active is not None:  # inactive negatives equal the base, which is not D_null
        away = away * per_image(predictions.active, away)
    return null, predictions.denoised - null, away
