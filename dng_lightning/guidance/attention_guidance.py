"""Guidance inside the attention of the network to its text."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import check_at_least
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.text_attention import TextAttention


@dataclass(frozen=True)
class AttentionGuidance(GuidanceWrapper):
    """Edits the attention of the base prediction, away from the forbidden texts; for text-to-image models only.

    The forbidden texts need no network evaluation of their own, only a part of the attention. So the method also works
    for few-step models, whose predictions are no conditional scores. The wrapped guidance gets the edited base
    prediction, for example in NormalizedAttention(ClassifierFreeGuidance(w)):

        D_hat = D_null + w (D_edited - D_null)

    Other predictions are not edited. A posterior tracked from edited and plain predictions is not meaningful.

    At its ``identity_scale`` it equals the wrapped guidance, bit for bit. ``Guided.scale`` is its own scale.

    Attributes:
        guidance: guidance that uses the edited base prediction: ``Unguided``, ``ClassifierFreeGuidance`` or another.
        scale: strength of the push, >= 0.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)

    @property
    def identity_scale(self) -> float:  # type: ignore[override]  # a class attribute of the others
        """The scale without a push."""
        return 0.0

    @abstractmethod
    def edit(self, attention: TextAttention) -> Tensor:
        """The output that replaces Z_+, before the output projection, (B, tokens, width)."""

    def acts(self, step: Step) -> bool:
        """Whether there is a push at this step."""
        return self.scale != self.identity_scale

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """The needs of the wrapped guidance, and the edit of the attention."""
        needs = super().needs(state, step)
        return replace(needs, attention=self.edit) if step is None or self.acts(step) else needs

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """The result of the wrapped guidance, with this scale."""
        guided = self.guidance.guide(predictions, state, step)
        scale = self.scale if self.acts(step) else self.identity_scale
        return replace(guided, scale=torch.full_like(guided.scale, scale))
