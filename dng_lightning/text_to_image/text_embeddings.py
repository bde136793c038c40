"""Texts as the encoders of a diffusers pipeline give them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
        mask: which tokens are no padding, (B, length); None for models that attend to all (all but PRX).
    """

    tokens: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> "TextEmbeddings":
        return self._each(lambda part: part[rows])

    def to(self, to: torch.device | torch.dtype) -> "TextEmbeddings":
        """The same on a device, or of a dtype."""
        return self._each(lambda part: part.to(to))

    def joined(self, other: "TextEmbeddings") -> "TextEmbeddings":
        """These, and then those of the ``other``."""
        return self._each(lambda part, after: torch.cat([part, after]), other)

    def _each(self, change: Callable[..., Tensor], *others: "TextEmbeddings") -> "TextEmbeddings":
        """``change`` of each part that there is, and of the same parts of others."""

        def changed(name: str) -> Tensor | None:
            parts = [getattr(each, name) for each in (self, *others)]
            return None if parts[0] is None else change(*parts)

        tokens = change(self.tokens, *(each.tokens for each in others))
        return TextEmbeddings(tokens, changed("pooled"), changed("mask"))


def check_negatives(
    guidance: Guidance, negatives: Sequence[Tensor] | Tensor | None, empties: Sequence[Any], others: bool = False
) -> None:
    """Check that there is a negative prompt if and only if the guidance uses one.

    Args:
        guidance: guidance method.
        negatives: tokens of the pipeline's negative prompts, (length, width) for each image; None for none.
        empties: tokens of the texts that count as no negative prompt, (1, length, width) each; empty if unknown.
        others: whether the guidance has negative prompts other than the pipeline's.

    Raises:
        SettingError: the negative prompt is missing, or not used.
    """
    given = [all(_apart(text, form[0]) for form in empties) for text in negatives] if negatives is not None else [False]
    avoids, name = guidance.needs().negatives, display_name(guidance)
    if avoids and not others and not all(given):
        raise SettingError(f"{name} needs a negative prompt: call the pipeline with a negative_prompt")
    if not empties:  # the pipeline's default could be mistaken for a negative prompt
        return
    if any(given) and others:
        raise SettingError("guided has negative prompts: call the pipeline without a negative_prompt")
    if any(given) and not avoids:
        raise SettingError(f"{name} uses no negative prompt: call the pipeline without a negative_prompt")


def _apart(text: Tensor, form: Tensor) -> bool:
    """Whether a text differs from ``form`` by more than the rounding of half precision."""
    return text.shape != form.shape or bool((text - form).abs().amax() > 1e-2 * form.abs().max())
