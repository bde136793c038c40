"""The attention of an image to its text and, by the same queries, to forbidden texts.

Negatives inside the attention are functions of it (``guidance/attention_guidance.py``); ``text_to_image/attention.py``
applies them in the networks of diffusers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Keys:
    """Keys and values of L tokens.

    Attributes:
        key: (B, heads, L, depth).
        value: the same.
        bias: added to the scores, broadcasts to (B, heads, N, L); None for none.
    """

    key: Tensor
    value: Tensor
    bias: Tensor | None = None

    def take(self, rows: slice, tokens: slice = slice(None)) -> "Keys":
        """The keys and values of some images and tokens."""
        bias = None if self.bias is None else self.bias[rows if len(self.bias) > 1 else slice(None), ..., tokens]
        return Keys(self.key[rows, :, tokens], self.value[rows, :, tokens], bias)

    def biased(self, bias: Tensor | float) -> "Keys":
        """The same with ``bias`` added to the scores."""
        whole = self.key.new_zeros(len(self.key), 1, 1, self.key.shape[2]) + bias
        return replace(self, bias=whole if self.bias is None else self.bias + whole)


@dataclass(frozen=True)
class TextAttention:
    """Queries of the N tokens of B images, and the keys and values of their text and of K forbidden texts.

    Attributes:
        query: (B, heads, N, depth).
        text: the images' own text.
        negatives: the forbidden texts.
        paddings: which of their tokens are padding, bool (L,) each; None where that is not known.
        image: the images' own tokens in a joint attention, which attends to them as well; None in a cross-attention.
        active: which forbidden texts count for which image, bool (B, K); None for all.
    """

    query: Tensor
    text: Keys
    negatives: Sequence[Keys]
    paddings: Sequence[Tensor | None]
    image: Keys | None = None
    active: Tensor | None = None

    def output(self, *texts: Keys) -> Tensor:
        """softmax(Q K' / sqrt(depth) + bias) V over the texts and, in a joint attention, the image, (B, N, width)."""
        heads = attend(self.query, *([] if self.image is None else [self.image]), *texts)
        return heads.transpose(1, 2).flatten(2).to(torch.promote_types(heads.dtype, torch.float32))

    @cached_property
    def z(self) -> Tensor:
        """The output for the images' own text, Z_+, (B, N, width)."""
        return self.output(self.text)

    @property
    def away(self) -> Tensor:
        """The sum of Z_k - Z_+ over the forbidden texts that count, (B, N, width)."""
        return self._total(lambda text: self.output(text) - self.z)

    @property
    def negative(self) -> Tensor:
        """The sum of Z_k over the forbidden texts that count, (B, N, width)."""
        return self._total(self.output)

    def _total(self, part: Callable[[Keys], Tensor]) -> Tensor:
        total = torch.zeros_like(self.z)
        for number, text in enumerate(self.negatives):
            on = 1 if self.active is None else self.active[:, number, None, None]
            total = total + on * part(text)
        return total

    def seen(self, text: int) -> Tensor:
        """The bias that hides the padding of a forbidden text, and the text where it does not count, (B, 1, 1, L)."""
        key, padding = self.negatives[text].key, self.paddings[text]
        hidden = torch.zeros(len(key), 1, 1, key.shape[2], dtype=torch.bool, device=key.device)
        hidden = hidden if padding is None else hidden | padding.to(key.device)
        hidden = hidden if self.active is None else hidden | ~self.active[:, text, None, None, None]
        return torch.zeros_like(hidden, dtype=key.dtype).masked_fill(hidden, -torch.inf)


AttentionEdit = Callable[[TextAttention], Tensor]
"""``edit(attention) -> (B, N, width)``: an output in the place of ``attention.z``."""


def attend(query: Tensor, *parts: Keys) -> Tensor:
    """softmax(Q K' / sqrt(depth) + bias) V over the tokens of all parts, (B, heads, N, depth)."""
    key, value = (torch.cat([getattr(part, name) for part in parts], 2) for name in ("key", "value"))
    if all(part.bias is None for part in parts):
        return scaled_dot_product_attention(query, key, value)
    each = [part.biased(0.0).bias for part in parts]
    rows, heads, queries = (max(bias.shape[axis] for bias in each if bias is not None) for axis in range(3))
    bias = torch.cat([bias.expand(rows, heads, queries, -1) for bias in each if bias is not None], -1)
    return scaled_dot_product_attention(query, key, value, bias)
