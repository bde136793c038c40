"""Classifier-free guidance (Ho & Salimans, 2022, arXiv 2207.12598, eq. 6, where their w is our scale - 1).

eps_hat = eps_null + scale * (eps_+ - eps_null)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step


class TowardWanted(Guidance):
    """A guidance that goes toward a wanted class and knows of no forbidden one."""

    @property
    def needs(self) -> Needs:
        """The unconditional prediction, and a wanted class."""
        return Needs(negatives=False, null=True, wanted=True)

    @property
    def neutral(self) -> float:
        """1: the wanted class's own prediction."""
        return 1.0


@dataclass(frozen=True)
class ClassifierFreeGuidance(TowardWanted):
    """Draws every image toward its wanted class, always equally hard.

    Attributes:
        scale: strength of the pull, >= 0; 0 is the unconditional prediction and 1 that of the wanted class, bit for
            bit.
    """

    scale: float = 3.0

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """Between the two predictions, or beyond."""
        base = predictions.base
        eps = torch.lerp(null_of(predictions), base, self.scale)
        return Guided(eps, base.new_full((len(base),), self.scale))


def null_of(predictions: Predictions) -> Tensor:
    """The unconditional prediction, (B, C, H, W).

    Raises:
        SettingError: it was not asked for.
    """
    if predictions.null is None:
        raise SettingError("the unconditional prediction is missing: ask the predictor for what the guidance needs")
    return predictions.null
