"""Orthogonal negative guidance, ONG (arXiv 2605.29390): negatives inside the attention, across the base's own output.

With Z_+ and Z_k what the same queries of the image make of the base's text and of the forbidden ones, token by token,
at every attention to a text and before its output projection:

    Z~ = Z_+ - scale sum_k (Z_k - proj_{Z_+} Z_k)

so that what Z_+ has in common with Z_k stays. The formula and the scale of 4 are from a third party's account of the
paper, whose text was not at hand; the paper has joint attentions (FLUX) and one forbidden text: cross-attentions and
the sum over several are ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.text_attention import TextAttention


@dataclass(frozen=True)
class OrthogonalAttention(AttentionGuidance):
    """ONG: subtracts what the forbidden texts say across the base's own text.

    Attributes:
        guidance: what is made of the predictions: ``Unguided`` for the base itself, ``ClassifierFreeGuidance`` or some
            other.
        scale: strength of the push, >= 0; at 0 it is the other guidance, bit for bit.

    Raises:
        SettingError: the scale is negative or not finite.
    """

    scale: float = 4.0

    def edit(self, attention: TextAttention) -> Tensor:
        """Z~, (B, tokens, width); the part of Z_k - Z_+ across Z_+ is that of Z_k."""
        z, away = attention.z, attention.away
        length = z.square().sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        along = (away * z).sum(-1, keepdim=True) / length * z
        return z - self.scale * (away - along)
