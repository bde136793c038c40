"""What an attention to a text gives, pushed away from other texts, in a U-Net of diffusers'."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dng_lightning.interfaces import AttentionEdit


class NAGAttnProcessor:
    """An attention processor that does what another one does, but for the first images of a batch.

    What it makes of their text goes through ``attending``; attention to the image itself is as it was.

    Args:
        inner: the other one, whichever it is; it computes all attentions.
        attending: what goes on of what the texts give, and when it is told so.
        images: how many of the batch, B.
        texts: what they are pushed from, K texts as encoded, (K, length, width).
        active: for each text, the numbers of the images that it counts for.
    """

    def __init__(
        self, inner: Any, attending: AttentionEdit, images: int, texts: Tensor, active: Sequence[Tensor]
    ) -> None:
        self.inner, self.attending, self.images, self.texts, self.active = inner, attending, images, texts, active

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
        every = torch.cat([self.attending(z, away).to(every.dtype), every[self.images :]])
        projected: Tensor = attn.to_out[1](attn.to_out[0](every))
        if attn.residual_connection:
            projected = projected + hidden_states
        return projected / float(attn.rescale_output_factor)


class Unprojected:
    """An attention of diffusers' as a processor sees it, less all that comes after it: projection, residual, scale.

    Args:
        attn: the attention.
    """

    residual_connection, rescale_output_factor = False, 1.0

    def __init__(self, attn: Any) -> None:
        self.attn, self.to_out = attn, (as_it_is, as_it_is)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attn, name)


def as_it_is(x: Tensor) -> Tensor:
    """``x``."""
    return x


@contextmanager
def away_from(
    unet: Any, attending: AttentionEdit, images: int, texts: Tensor, active: Sequence[Tensor]
) -> Iterator[None]:
    """While it lasts, the first ``images`` of a batch through the U-Net attend to their text like this.

    See ``NAGAttnProcessor`` for the arguments. Where no text is active for any image, nothing changes.
    """
    if not any(map(len, active)):
        yield
        return
    before = unet.attn_processors
    made = {name: NAGAttnProcessor(inner, attending, images, texts, active) for name, inner in before.items()}
    try:
        unet.set_attn_processor(made)
        with torch.compiler.set_stance("force_eager"):  # else compiled anew at each call, for each new processor
            yield
    finally:
        unet.set_attn_processor(before)
