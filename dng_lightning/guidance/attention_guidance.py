"""Guidance inside the attention of the network to its text."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import check_at_least_0
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.text_attention import TextAttention


@dataclass(frozen=True)
class AttentionGuidance(GuidanceWrapper):
    """Has another guidance's base prediction attend away from the forbidden texts; for text-to-image models alone.

    The forbidden texts cost no pass through the network, only their share of the attentions. So it also serves models
    of few steps, which have no use for classifier-free guidance, and whose predictions are no conditional scores that
    could be compared. Where there is use for it, it goes on top of the base prediction that was made like this:

        D_hat = D_null + w (D_edited - D_null)         for instance NormalizedAttention(ClassifierFreeGuidance(w))

    Forbidden predictions, where a guidance asks for them, are plain ones. A posterior that is tracked by comparing the
    two means little: the base prediction is no longer of the same model.

    At its ``identity_scale`` it is the other guidance, bit for bit. ``Guided.scale`` is its own.

    Attributes:
        guidance: what is made of the predictions: ``Unguided`` for the base itself, ``ClassifierFreeGuidance`` or some
            other.
        scale: strength of the push, >= 0.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)

    @property
    def identity_scale(self) -> float:  # type: ignore[override]  # a class attribute of the others
        """The scale without a push."""
        return 0.0

    @abstractmethod
    def edit(self, attention: TextAttention) -> Tensor:
        """The output of the attention to the text, before its projection, in the place of Z_+; (B, tokens, width)."""

    def acts(self, step: Step) -> bool:
        """Whether there is a push at this step."""
        return self.scale != self.identity_scale

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """What the wrapped guidance needs, of a base prediction whose attention is edited."""
        needs = super().needs(state, step)
        return replace(needs, attention=self.edit) if step is None or self.acts(step) else needs

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """What the wrapped guidance makes of these predictions."""
        guided = self.guidance.guide(predictions, state, step)
        scale = self.scale if self.acts(step) else self.identity_scale
        return replace(guided, scale=torch.full_like(guided.scale, scale))
