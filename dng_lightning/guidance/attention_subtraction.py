"""Negative-Away Steer Attention, NASA (Nguyen et al., ICCV 2025, arXiv 2412.02687): negatives inside the attention.

Z_+ and Z_k are the outputs of each attention to the base's text and to the forbidden text k, with the same queries of
the image, before the output projection, for each token:

    Z_NASA = Z_+ - scale sum_k Z_k

The formula is quoted from equation 5 of Chen et al. (NAG, arXiv 2505.21179). Nothing bounds Z_NASA, and what the texts
have in common is subtracted as well: small scales only. The paper has one forbidden text, cross-attentions and models
of one step; joint attentions and the sum over several texts are ours.
"""

from dataclasses import dataclass

from torch import Tensor

from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.text_attention import TextAttention


@dataclass(frozen=True)
class AttentionSubtraction(AttentionGuidance):
    """NASA: subtracts the attention to the forbidden texts.

    Attributes:
        guidance: guidance that uses the edited base prediction: ``Unguided``, ``ClassifierFreeGuidance`` or another.
        scale: strength of the push, >= 0; at 0 it equals the wrapped guidance, bit for bit.

    Raises:
        SettingError: the scale is negative or not finite.
    """

    scale: float = 0.1

    def edit(self, attention: TextAttention) -> Tensor:
        """Z_NASA, (B, tokens, width)."""
        return attention.z - self.scale * attention.negative
