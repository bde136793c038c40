"""Value Sign Flip, VSF (Guo and Du, ICLR 2026, arXiv 2508.10931): negatives inside the softmax of the attention.

The tokens of the forbidden texts stand beside those of the base's text, with their values flipped. At every attention
to a text, for the queries of the image, before the output projection:

    Z_VSF = softmax(Q [K_+; K_1; ...]' / sqrt(d) + [0; bias; ...]) [V_+; -scale V_1; ...]

so that a forbidden text counts where, and as much as, the image attends to it. In a joint attention the image's own
tokens stand beside them as well; the tokens of a text attend to the image and to their own text with their values as
they are. The formula and the settings are those of the authors' release: scale 3.5 and bias -0.1 for Stable Diffusion
3.5, 1.7 and -0.2 for Wan. The release encodes forbidden texts without padding; here no query sees their padding, where
the model's tokenizers tell it. It has one forbidden text: several are ours.
"""

from dataclasses import dataclass, replace
from math import isfinite

from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.text_attention import TextAttention


@dataclass(frozen=True)
class ValueSignFlip(AttentionGuidance):
    """VSF: attends to the forbidden texts with their values flipped.

    Attributes:
        guidance: what is made of the predictions: ``Unguided`` for the base itself, ``ClassifierFreeGuidance`` or some
            other.
        scale: factor of the flipped values, >= 0; at 0 the forbidden texts are left out, and it is the other guidance,
            bit for bit.
        bias: of the scores of the forbidden tokens; below 0 they are attended to less.

    Raises:
        SettingError: the scale is negative, or a setting is not finite.
    """

    scale: float = 3.5
    bias: float = -0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isfinite(self.bias):
            raise SettingError(f"bias must be finite; got {self.bias}")

    def edit(self, attention: TextAttention) -> Tensor:
        """Z_VSF, (B, tokens, width)."""
        flipped = [
            replace(text, value=-self.scale * text.value).biased(attention.seen(number) + self.bias)
            for number, text in enumerate(attention.negatives)
        ]
        return attention.output(attention.text, *flipped)
