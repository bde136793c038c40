"""Texts as the encoders of a diffusers pipeline give them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of B texts, as a U-Net takes them.

    Attributes:
        tokens: (B, length, width).
        pooled: each text as a whole, (B, width); None for models without it (all but SDXL).
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> "TextEmbeddings":
        return TextEmbeddings(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def to(self, to: torch.device | torch.dtype) -> "TextEmbeddings":
        """The same on a device, or of a dtype."""
        return TextEmbeddings(self.tokens.to(to), None if self.pooled is None else self.pooled.to(to))

    def joined(self, other: "TextEmbeddings") -> "TextEmbeddings":
        """These, and then those of the ``other``."""
        pooled = [part for part in (self.pooled, other.pooled) if part is not None]
        return TextEmbeddings(torch.cat([self.tokens, other.tokens]), torch.cat(pooled) if pooled else None)


class NullEmbedding:
    """What a pipeline gives its U-Net where there is no negative prompt.

    Args:
        encoded: what the pipeline's ``encode_prompt`` returns for the prompt "" without a negative prompt: the tokens
            of both, and for SDXL both texts as a whole.

    Attributes:
        null: the second of them, a single text: the unconditional one.
    """

    def __init__(self, encoded: Sequence[Tensor]) -> None:
        text, none, *pooled = encoded
        self.null = TextEmbeddings(none, pooled[1] if pooled else None)
        self.forms = (text, none)  # SDXL has zeros in the place of the second

    def check(self, guidance: Guidance, negatives: Tensor | None) -> None:
        """Refuse a guidance away from something without a negative prompt, and any other one with a negative prompt.

        Args:
            guidance: the method.
            negatives: tokens of what the pipeline has for negative prompts, one an image; None where it has none.

        Raises:
            SettingError: see above.
        """
        given = torch.zeros(1, dtype=torch.bool)
        if negatives is not None:  # half precision rounds otherwise in a batch of another size
            apart = [(negatives - form).abs().amax((1, 2)) > 1e-2 * form.abs().max() for form in self.forms]
            given = torch.stack(apart).all(0)
        avoids = guidance.needs().negatives
        if avoids and not given.all():
            raise SettingError(f"{display_name(guidance)} avoids something: call the pipeline with a negative_prompt")
        if not avoids and given.any():
            raise SettingError(f"{display_name(guidance)} avoids nothing: call the pipeline without a negative_prompt")
