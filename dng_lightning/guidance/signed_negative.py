"""Negative prompting with a sign a condition: what A1111's AND does with a negative weight, and VL-DNP (2510.26052).

    eps_hat = eps_null + wanted_scale (eps_+ - eps_null) - scale sum_k (eps_k - eps_null)

Both differences are to the unconditional prediction. Without a wanted condition eps_+ = eps_null: the wanted term is
gone, and what is left is DNG's negative prompting (``negative_prompting.py``) at the same scale.
"""

from dataclasses import dataclass

from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step, per_image


@dataclass(frozen=True)
class SignedNegative(Guidance):
    """Pulls to the wanted condition and pushes from the forbidden ones, each by a scale of its own.

    Attributes:
        scale: strength of the push, >= 0; 0 is classifier-free guidance, or unguided where nothing is wanted.
        wanted_scale: strength of the pull, >= 0; 1 is the wanted condition's own prediction.
    """

    scale: float = 1.0
    wanted_scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale, wanted_scale=self.wanted_scale)

    @property
    def needs(self) -> Needs:
        """The unconditional prediction too."""
        return Needs(null=True)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The unconditional prediction and the scaled differences."""
        null, toward, away = differences(predictions)
        eps = null + self.wanted_scale * toward - self.scale * away.sum(1)
        return Guided(eps, null.new_full((len(null),), self.scale))


def differences(predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """The unconditional prediction and what the conditions add to it.

    Returns:
        eps_null (B, ...); eps_+ - eps_null (B, ...), 0 where nothing is wanted; eps_k - eps_null (B, K, ...), 0 where a
        condition is not active.

    Raises:
        SettingError: there is no unconditional prediction.
    """
    null = predictions.null
    if null is None:
        raise SettingError("a guidance that asks for the unconditional prediction needs a predictor that gives it")
    away = predictions.negatives - null.unsqueeze(1)
    if predictions.active is not None:  # the others equal the base
        away = away * per_image(predictions.active, away)
    return null, predictions.base - null, away
