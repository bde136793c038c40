"""Value Sign Flip, VSF (Guo and Du, ICLR 2026, arXiv 2508.10931): negatives inside the softmax of the attention.

The tokens of the forbidden texts are appended to those of the base's text, with negative values. At every attention to
a text, for the queries of the image, before the output projection:

    Z_VSF = softmax(Q [K_+; K_1; ...]' / sqrt(d) + [0; bias; ...]) [V_+; -scale V_1; ...]

So a forbidden text acts where the image attends to it, and in proportion. Joint attention includes the image's own
tokens too; the tokens of a text attend to the image and to their own text, with unchanged values. Formula and settings
are those of the authors' release: scale 3.5 and bias -0.1 for Stable Diffusion 3.5, 1.7 and -0.2 for Wan. The release
encodes forbidden texts without padding; here their padding is masked if the model's tokenizers mark it. The release has
one forbidden text: several are ours.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from dng_lightning.errors import check_in
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.text_attention import TextAttention


@dataclass(frozen=True)
class ValueSignFlip(AttentionGuidance):
    """VSF: attends to the forbidden texts with negative values.

    Attributes:
        guidance: guidance that uses the edited base prediction: ``Unguided``, ``ClassifierFreeGuidance`` or another.
        scale: factor of the negative values, >= 0; at 0 it equals the wrapped guidance, bit for bit.
        bias: added to the attention scores of the forbidden tokens; below 0 it reduces their weight.

    Raises:
        SettingError: the scale is negative, or a setting is not finite.
    """

    scale: float = 3.5
    bias: float = -0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_in("(-inf, inf)", bias=self.bias)

    def edit(self, attention: TextAttention) -> Tensor:
        """Z_VSF, (B, tokens, width)."""
        flipped = [
            replace(text, value=-self.scale * text.value).biased(attention.seen(number) + self.bias)
            for number, text in enumerate(attention.negatives)
        ]
        return attention.output(attention.text, *flipped)
