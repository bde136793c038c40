"""Orthogonal negative guidance, ONG (arXiv 2605.29390): negatives inside the attention, across the base's own output.

With Z_+ and Z_k what the same queries of the image make of the base's text and of the forbidden ones, token by token,
at every attention to a text and before its output projection:

    Z~ = Z_+ - scale sum_k (Z_k - proj_{Z_+} Z_k)

so that what Z_+ has in common with Z_k stays. The formula and the scale of 4 are from a third party's account of the
paper, whose text was not at hand; the paper has joint attentions (FLUX) and one forbidden text: cross-attentions and
the sum over several are ours. The cost is that of ``normalized_attention.py``: no pass through the network, so it also
serves models of few steps without classifier-free guidance.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import check_at_least_0
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Guided, Needs, Predictions, Step


@dataclass(frozen=True)
class OrthogonalAttention(GuidanceWrapper):
    """Has another guidance's base prediction attend across the forbidden texts; for text-to-image models alone.

    At scale 0 it is the other guidance, bit for bit. ``Guided.scale`` is its own.

    Attributes:
        guidance: what is made of the predictions: ``Unguided`` for the base itself, ``ClassifierFreeGuidance`` or some
            other.
        scale: strength of the push, >= 0.

    Raises:
        SettingError: the scale is negative or not finite.
    """

    scale: float = 4.0

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)

    @property
    def identity_scale(self) -> float:  # type: ignore[override]  # a class attribute of the others
        """0: no push."""
        return 0.0

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """What the wrapped guidance needs, of a base prediction whose attention is edited."""
        return replace(super().needs(state, step), attention=self.edit)

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """What the wrapped guidance makes of these predictions."""
        guided = self.guidance.guide(predictions, state, step)
        return replace(guided, scale=torch.full_like(guided.scale, self.scale))

    def edit(self, z: Tensor, away: Tensor) -> Tensor:
        """Z~ of Z_+ and of the sum of the Z_k - Z_+, whose part across Z_+ is that of the Z_k; (B, tokens, width)."""
        length = z.square().sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        along = (away * z).sum(-1, keepdim=True) / length * z
        return z - self.scale * (away - along)
