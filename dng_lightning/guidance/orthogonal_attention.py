"""Orthogonal negative guidance, ONG (arXiv 2605.29390): negatives inside the attention, orthogonal to the base output.

Z_+ and Z_k are the outputs of each attention to the base's text and to the forbidden text k, with the same queries of
the image, before the output projection, for each token:

    Z~ = Z_+ - scale sum_k (Z_k - proj_{Z_+} Z_k)

The part of Z_k along Z_+ is kept. The formula and the scale 4 are from a third party's account, not checked against the
paper. The paper has joint attention (FLUX) and one forbidden text: cross-attention and the sum over several are ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.text_attention import TextAttention


@dataclass(frozen=True)
class OrthogonalAttention(AttentionGuidance):
    """ONG: subtracts the part of the forbidden texts' attention output that is orthogonal to the base's output.

    Attributes:
        guidance: guidance that uses the edited base prediction: ``Unguided``, ``ClassifierFreeGuidance`` or another.
        scale: strength of the push, >= 0; at 0 it equals the wrapped guidance, bit for bit.

    Raises:
        SettingError: the scale is negative or not finite.
    """

    scale: float = 4.0

    def edit(self, attention: TextAttention) -> Tensor:
        """Z~, (B, tokens, width); Z_k - Z_+ and Z_k have the same part orthogonal to Z_+."""
        z, away = attention.z, attention.away
        length = z.square().sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        along = (away * z).sum(-1, keepdim=True) / length * z
        return z - self.scale * (away - along)
