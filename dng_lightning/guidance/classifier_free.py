"""Classifier-free guidance (Ho & Salimans, 2022, arXiv 2207.12598, equation 6, where their w is our scale - 1).

D_hat = D_null + scale * (D_+ - D_null)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dng_lightning.errors import check_at_least
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, provided


class PositiveGuidance(Guidance):
    """Base class of guidances toward a class or prompt, without forbidden conditions."""

    identity_scale: ClassVar[float] = 1.0

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """The unconditional prediction, and a class or prompt."""
        return Needs(null=True, class_labels=True)


@dataclass(frozen=True)
class ClassifierFreeGuidance(PositiveGuidance):
    """Pulls every image toward its class or prompt with the same strength at every step.

    Attributes:
        scale: strength of the pull, >= 0; 0 is the unconditional prediction and 1 that of the class or prompt, bit for
            bit.
    """

    scale: float = 3.0

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The linear inter- or extrapolation of the two predictions."""
        base, null = predictions.denoised, provided(predictions.null, "null")
        return Guided(torch.lerp(null, base, self.scale), base.new_full((len(base),), self.scale))
