"""The attention to a text, edited by forbidden texts, in the networks of diffusers: U-Nets and transformers.

The tokens of the forbidden texts stand behind those of the images' own text in the network's input. So the blocks of a
joint attention (Stable Diffusion 3, Flux) carry them as they carry the text, at the cost of their tokens and not of
another pass. Inside an attention the processor of diffusers computes queries, keys and values, and calls torch's
``scaled_dot_product_attention``. That call is intercepted: the image attends as the edit says, and each text to the
image and to itself, as if it were alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from dng_lightning.errors import SettingError
from dng_lightning.text_attention import AttentionEdit, Keys, TextAttention, attend

Place = Literal["apart", "keys", "before", "after"]
"""The tokens of the text in an attention: keys alone (cross-attention); keys before those of the image, whose queries
are alone (PRX); or queries and keys, before or after those of the image."""

WITHOUT_FUSED = ("AttnProcessor", "SlicedAttnProcessor")  # processors that compute the softmax step by step
ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True)
class ForbiddenTexts:
    """Tokens of K forbidden texts, for the text argument of a network.

    Attributes:
        tokens: (L_k, width) each.
        paddings: which of them are padding, bool (L_k,) each; None where ``masks`` have it.
        place: where the network has the text.
        masks: of their padding, (L_k,) each, for a network that takes a mask; none for others.
    """

    tokens: Sequence[Tensor]
    paddings: Sequence[Tensor | None]
    place: Place = "apart"
    masks: Sequence[Tensor] = ()

    def append(self, own: Tensor) -> Tensor:
        """The tokens of the images' own texts (B, L, width), and behind them these."""
        rows = [text.to(own.device, own.dtype).expand(len(own), -1, -1) for text in self.tokens]
        return torch.cat([own, *rows], 1)


@contextmanager
def edited_attention(
    network: Any, edit: AttentionEdit, images: int, own: int, texts: ForbiddenTexts, active: Tensor | None = None
) -> Iterator[None]:
    """Edit each attention of a network to its text, behind whose tokens are those of the forbidden ``texts``.

    Args:
        network: of diffusers.
        edit: gives the outputs.
        images: how many images of a batch, from the first; the others attend to their own text alone.
        own: number of tokens of an image's own text.
        texts: the forbidden ones.
        active: which of them count for which image, bool (B, K); None for all.
    """
    mode = _Intercepted(edit, images, [own, *map(len, texts.tokens)], texts, active)
    attentions = [part for part in network.modules() if hasattr(part, "processor")]
    with ExitStack() as stack:
        for attention in attentions:
            if type(attention.processor).__name__ in WITHOUT_FUSED:
                from diffusers.models.attention_processor import AttnProcessor2_0  # slow to import

                fused: Any = AttnProcessor2_0
                stack.enter_context(replaced(attention, "processor", fused()))
            stack.enter_context(replaced(attention, "forward", _with_mode(attention.forward, mode)))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # else compiled anew at each call
        yield


def _with_mode(forward: Callable[..., Any], mode: "_Intercepted") -> Callable[..., Any]:
    """The forward of an attention, edited if it attends to the text."""

    def edited(*args: Any, **kwargs: Any) -> Any:
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        if text is None and mode.texts.place != "before":  # where it comes before, all attentions are joint
            return forward(*args, **kwargs)
        mode.calls = 0
        with mode:
            output = forward(*args, **kwargs)
        if not mode.calls:
            raise SettingError("the attention is edited in torch's own backend alone: set_attention_backend('native')")
        return output

    return edited


class _Intercepted(TorchFunctionMode):
    """Edits the calls of ``scaled_dot_product_attention``; see ``edited_attention`` for the arguments.

    Attributes:
        calls: how many there were.
    """

    def __init__(
        self, edit: AttentionEdit, images: int, lengths: Sequence[int], texts: ForbiddenTexts, active: Tensor | None
    ) -> None:
        super().__init__()
        self.edit, self.images, self.lengths, self.texts, self.active = edit, images, lengths, texts, active
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        given = dict(zip(ARGUMENTS, args, strict=False)) | (kwargs or {})
        return self._attend(given["query"], Keys(given["key"], given["value"], _bias(given)))

    def _attend(self, query: Tensor, keys: Keys) -> Tensor:
        """The outputs of an attention, (B, heads, tokens, depth)."""
        # The tokens: the texts one after the other, and the image
        place, count, whole = self.texts.place, sum(self.lengths), keys.key.shape[2]
        before, alone = place in ("keys", "before"), place in ("apart", "keys")
        start = 0 if before else whole - count
        bounds = [slice(*pair) for pair in pairwise(accumulate(self.lengths, initial=start))]
        among = slice(count, whole) if before else slice(0, start)
        image = None if place == "apart" else among
        edited, others = slice(0, self.images), slice(self.images, None)

        # The image: edited for the first of the batch
        looking = query if alone else query[:, :, image]
        own, *forbidden = [keys.take(edited, part) for part in bounds]
        itself = None if image is None else keys.take(edited, image)
        attention = TextAttention(looking[edited], own, forbidden, self.texts.paddings, itself, self.active)
        z = self.edit(attention).to(query.dtype).view(*looking[edited].transpose(1, 2).shape).transpose(1, 2)
        if len(query) > self.images:
            parts = [bounds[0]] if image is None else [image, bounds[0]]
            z = torch.cat([z, attend(looking[others], *(keys.take(others, part) for part in parts))])
        if image is None or alone:
            return z

        # The texts: each attends to the image and to itself
        everybody = slice(None)
        read = [attend(query[:, :, part], keys.take(everybody, image), keys.take(everybody, part)) for part in bounds]
        return torch.cat([*read, z] if before else [z, *read], 2)


def _bias(given: dict[str, Any]) -> Tensor | None:
    """The mask of a call, as a bias."""
    mask = given.get("attn_mask")
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=given["query"].dtype).masked_fill(~mask, -torch.inf)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another method or attribute for an object."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)
