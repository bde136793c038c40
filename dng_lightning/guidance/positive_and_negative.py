"""Images of a class or prompt c+ without a forbidden condition c-: a negative guidance with another base.

The score of p(x | c+, not c-) is that of p(x | c+) pushed away from c- by the odds of p(c- | x, c+). The prediction for
c+ takes the place of the unconditional one in the push and in the posterior: the kernels of c- and c+ give
p(c- | x, c+) where c- is part of c+, and ``prior`` of the posterior is the share of c- in c+.

Classifier-free guidance is applied to both predictions, for the push and for the posterior:

    D_+/- <- D_null + w (D_+/- - D_null)

so that the posterior is still a ratio of two kernels of the same (sharpened) model.

A negative prompt is rarely a part of what the prompt describes: "a seven" may have any colour, and "a red digit" is
red. The ratio of their kernels then compares colours as well, and says of every red image that it is no seven. Where c-
and c+ are ``independent`` given the image, p(c- | x, c+) = p(c- | x), which follows from the kernels of c- and of the
unconditional model, without classifier-free guidance. The push is then away from D_- - D_null:

    D_- <- D_+ + (D_- - D_null)          the conjunction of both (Liu et al. 2022)

With a constant scale this is ``SignedNegative``.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, per_image, provided


@dataclass(frozen=True)
class PositiveAndNegative(GuidanceWrapper):
    """Avoids the forbidden conditions among images of a class or prompt.

    Attributes:
        guidance: the negative guidance.
        cfg_scale: w above, >= 0; at 1 this is ``guidance`` with the class or prompt as its base, bit for bit.
        independent: c- and c+ are independent given the image, as above. ``prior`` is the share of c- in c+ either way.
            Not for deterministic sampling, where the estimated divergence is of other differences.

    Raises:
        SettingError: a setting is out of its range, or the posterior asks for a divergence and ``independent`` is set.
    """

    cfg_scale: float = 1.0
    independent: bool = False

    def __post_init__(self) -> None:
        check_at_least(0, cfg_scale=self.cfg_scale)
        if self.independent and self.guidance.needs().divergence:
            raise SettingError("independent goes without a divergence: set divergence to 0, or independent to false")

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """What the negative guidance needs, a class or prompt, and where w is not 1 the unconditional prediction."""
        needs = super().needs(state, step)
        null = needs.null or self.independent or self.cfg_scale != 1
        divergence = None if self.independent else needs.divergence
        return replace(needs, null=null, class_labels=True, divergence=divergence)

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """The negative guidance of the predictions above."""
        return self.guidance.guide(self.sharpened(predictions), state, step)

    def update(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> Any:
        """The negative guidance's state after the step."""
        sharpened = self.sharpened(predictions)
        if not self.independent:
            return self.guidance.update(state, step, x_t, x_s, sharpened, guided)
        # The posterior compares c- with the unconditional model; the push is the same, with that model as its base.
        null = provided(predictions.null, "null")
        plain = replace(predictions, denoised=null, negatives=_about(null, predictions), divergence=None)
        guided = replace(guided, denoised=null + (guided.denoised - sharpened.denoised))
        return self.guidance.update(state, step, x_t, x_s, plain, guided)

    def sharpened(self, predictions: Predictions) -> Predictions:
        """The predictions of c+ and c- with classifier-free guidance, which guide the image."""
        if self.cfg_scale == 1 and not self.independent:
            return predictions
        null, w = provided(predictions.null, "null"), self.cfg_scale
        base = torch.lerp(null, predictions.denoised, w)
        if not self.independent:
            negatives = torch.lerp(null.unsqueeze(1), predictions.negatives, w)
            divergence = None if predictions.divergence is None else w * predictions.divergence
            return replace(predictions, denoised=base, negatives=negatives, divergence=divergence)
        away = _about(null, predictions) - null.unsqueeze(1)
        return replace(predictions, denoised=base, negatives=base.unsqueeze(1) + away, divergence=None)


def _about(null: Tensor, predictions: Predictions) -> Tensor:
    """The negatives (B, K, ...) with ``null`` as their base: those that are not active equal ``null``."""
    negatives, active = predictions.negatives, predictions.active
    return negatives if active is None else torch.where(per_image(active, negatives), negatives, null.unsqueeze(1))
