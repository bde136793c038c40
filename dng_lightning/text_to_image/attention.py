"""Attention to a text, edited by its attention to other texts, in a diffusers U-Net."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dng_lightning.interfaces import AttentionEdit


class NAGAttnProcessor:
    """Another attention processor, with the output of the attention to a text edited for the first images of a batch.

    Self-attention is unchanged.

    Args:
        inner: the other processor; it computes all attentions.
        edit: changes the outputs.
        images: number B of images whose attention is edited.
        texts: embeddings of K other texts, (K, length, width).
        active: for each of them, the numbers of the images that it counts for.
    """

    def __init__(self, inner: Any, edit: AttentionEdit, images: int, texts: Tensor, active: Sequence[Tensor]) -> None:
        self.inner, self.edit, self.images, self.texts, self.active = inner, edit, images, texts, active

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """See diffusers' ``AttnProcessor``, whose names of arguments count; (batch, tokens, width)."""
        if encoder_hidden_states is None:
            itself: Tensor = self.inner(attn, hidden_states, attention_mask=attention_mask)
            return itself
        assert attention_mask is None  # the texts are all of one length
        bare = Unprojected(attn)
        every = self.inner(bare, hidden_states, encoder_hidden_states)
        exact = torch.promote_types(every.dtype, torch.float32)
        z = every[: self.images].to(exact)
        away = torch.zeros_like(z)
        for text, active in zip(self.texts.to(hidden_states.dtype), self.active, strict=True):
            if len(active):
                other = self.inner(bare, hidden_states[active], text.expand(len(active), -1, -1))
                away = away.index_add(0, active, other.to(exact) - z[active])
        every = torch.cat([self.edit(z, away).to(every.dtype), every[self.images :]])
        projected: Tensor = attn.to_out[1](attn.to_out[0](every))
        if attn.residual_connection:
            projected = projected + hidden_states
        return projected / float(attn.rescale_output_factor)


class Unprojected:
    """A diffusers attention as a processor sees it, without what follows it: projection, residual, scale.

    Args:
        attn: the attention.
    """

    residual_connection, rescale_output_factor = False, 1.0

    def __init__(self, attn: Any) -> None:
        self.attn, self.to_out = attn, (nn.Identity(), nn.Identity())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attn, name)


@contextmanager
def edited_attention(
    unet: Any, edit: AttentionEdit, images: int, texts: Tensor, active: Sequence[Tensor]
) -> Iterator[None]:
    """Edit the attention to their text of the first ``images`` of each batch through the U-Net.

    See ``NAGAttnProcessor`` for the arguments. Where no text is active for any image, nothing changes.
    """
    if not any(map(len, active)):
        yield
        return
    before = unet.attn_processors
    try:
        unet.set_attn_processor({k: NAGAttnProcessor(p, edit, images, texts, active) for k, p in before.items()})
        with torch.compiler.set_stance("force_eager"):  # else compiled anew at each call, for each new processor
            yield
    finally:
        unet.set_attn_processor(before)
