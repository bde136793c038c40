"""Layout of a pipeline's network calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dng_lightning.text_to_image.attention import ForbiddenTexts, Place

Texts = dict[str, Any]
"""The arguments of a network call that depend on the text, for one text."""

Encode = Callable[[Any, str, Mapping[str, Any]], Texts]
"""``encode(pipeline, negative_prompt, settings)``: encodes a negative prompt like the pipeline; "" for none."""

Refuse = Callable[[Any, Mapping[str, Any]], str | None]
"""``refuse(pipeline, arguments)``: the reason why a network call cannot be guided, in one line; None if it can."""


@dataclass(frozen=True)
class TextTokens:
    """The tokens of a text in a network's input and attentions; see ``attention.py``.

    Attributes:
        place: where they are in an attention.
        mask: the argument that hides padding, (B, L); None where the network sees it.
        positions: the argument that has a row for each token, (L, ...); None for none.
        tokenizers: of the pipeline, in the order of the tokens; all but the last give as many as the first reads.
    """

    place: Place
    mask: str | None = None
    positions: str | None = None
    tokenizers: tuple[str, ...] = ("tokenizer",)

    def padding(self, pipeline: Any, text: str, length: int) -> Tensor | None:
        """Which of ``length`` tokens only fill the text up to it, bool (L,); None where a mask says so."""
        if self.mask is not None:
            return None
        most = pipeline.tokenizer.model_max_length
        parts = []
        for name in self.tokenizers:
            part = length if name == self.tokenizers[-1] else min(most, length)
            length -= part
            tokenizer = getattr(pipeline, name, None)
            given = tokenizer(text, max_length=part, truncation=True).attention_mask if tokenizer else [0]
            parts.append(torch.arange(part) >= torch.as_tensor(given).sum())
        return torch.cat(parts)


@dataclass(frozen=True)
class Layout:
    """How a pipeline calls its network.

    Attributes:
        rows: arguments of the network's ``forward`` with one row per image, the latents and the timestep first.
        text: the argument in ``rows`` with the text.
        encode: encodes a negative prompt.
        networks: names of the pipeline's denoising networks.
        together: whether one call evaluates negative prompts and prompts; otherwise there is a call for the prompts
            and then one for the negative prompts.
        negatives_first: whether the negative prompts come first in a common call.
        sign: factor from the network's output to the prediction of the scheduler.
        switch: arguments of the pipeline's call with which it evaluates negative prompts, for messages.
        empties: encodes the texts that count as no negative prompt, the unconditional one first; None for ``encode``
            of "".
        refuse: finds calls that cannot be guided.
        tokens: those of the text, where its attention can be edited; None where it cannot.
    """

    rows: tuple[str, ...]
    text: str
    encode: Encode
    networks: tuple[str, ...] = ("transformer",)
    together: bool = True
    negatives_first: bool = True
    sign: float = 1.0
    switch: str = "guidance_scale above 1"
    empties: Callable[[Any, Mapping[str, Any]], list[Texts]] | None = None
    refuse: Refuse = field(default=lambda pipeline, arguments: None)
    tokens: TextTokens | None = None

    @property
    def latents(self) -> str:
        """The argument that holds the latents."""
        return self.rows[0]

    def no_negatives(self, pipeline: Any, settings: Mapping[str, Any]) -> list[Texts]:
        """The texts that count as no negative prompt, the unconditional one first."""
        if self.empties is not None:
            return self.empties(pipeline, settings)
        return [self.encode(pipeline, "", settings)]


@dataclass(frozen=True)
class NetworkCall:
    """Arguments of a call of the network for B images.

    Attributes:
        layout: layout of the pipeline.
        arguments: arguments by name.
    """

    layout: Layout
    arguments: Mapping[str, Any]

    @property
    def x_t(self) -> Tensor:
        """The latents, (B, ...)."""
        latents = self.arguments[self.layout.latents]
        return torch.stack(latents) if isinstance(latents, list) else latents

    @property
    def text(self) -> Any:
        """The text, a row for each image."""
        return self.arguments[self.layout.text]

    def take(self, rows: Tensor) -> "NetworkCall":
        """The call for some of the images, by their indices (N,), which may repeat."""
        return self._with(lambda value: _map(lambda part: _take(part, rows), value))

    def with_text(self, text: Texts) -> "NetworkCall":
        """The call with another text, the same for all images."""
        count = len(self.arguments[self.layout.latents])
        rows = torch.zeros(count, dtype=torch.long)
        repeated = {name: _map(lambda part: _take(part, rows), value) for name, value in text.items()}
        return NetworkCall(self.layout, _merged(self.arguments, repeated))

    def with_forbidden(self, texts: ForbiddenTexts) -> "NetworkCall":
        """The same call with the tokens of forbidden texts behind those of each text."""
        tokens, arguments = self.layout.tokens, dict(self.arguments)
        assert tokens is not None
        arguments[self.layout.text] = texts.append(self.text)
        if tokens.mask is not None and (own := arguments.get(tokens.mask)) is not None:
            arguments[tokens.mask] = torch.cat([own, *(mask.to(own).expand(len(own), -1) for mask in texts.masks)], 1)
        if tokens.positions is not None:
            rows = arguments[tokens.positions]
            arguments[tokens.positions] = torch.cat([rows, *(rows[: len(text)] for text in texts.tokens)])
        return NetworkCall(self.layout, arguments)

    def with_latents(self, x_t: Tensor) -> "NetworkCall":
        """The call with other latents (B, ...), in the precision of its own."""
        latents = self.arguments[self.layout.latents]
        many = isinstance(latents, list)
        moved = x_t.to(latents[0].dtype)
        return NetworkCall(self.layout, {**self.arguments, self.layout.latents: list(moved) if many else moved})

    def halves(self) -> "tuple[NetworkCall, NetworkCall]":
        """The first and the second half of the images."""
        count = len(self.arguments[self.layout.latents])
        first, second = torch.arange(count).chunk(2)
        return self.take(first), self.take(second)

    def fits(self, other: "NetworkCall") -> bool:
        """Whether one call can evaluate both."""
        if not self.layout.together:
            return False
        return isinstance(self.text, list) or self.text.shape[1:] == other.text.shape[1:]

    def joined(self, others: "Sequence[NetworkCall]") -> "NetworkCall":
        """One call for the images of this call and of the others."""
        calls = [self, *others]

        def together(name: str) -> Any:
            return _cat([call.arguments[name] for call in calls])

        rows = {name: together(name) for name in self.layout.rows if name in self.arguments}
        return NetworkCall(self.layout, {**self.arguments, **rows})

    def _with(self, change: Callable[[Any], Any]) -> "NetworkCall":
        rows = {name: change(self.arguments[name]) for name in self.layout.rows if name in self.arguments}
        return NetworkCall(self.layout, {**self.arguments, **rows})


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """``change`` of a value, or of each value of a dictionary."""
    return {name: _map(change, part) for name, part in value.items()} if isinstance(value, dict) else change(value)


def _take(value: Any, rows: Tensor) -> Any:
    """Some rows of a tensor or a list; a value without rows stays as it is."""
    if isinstance(value, list):
        return [value[row] for row in rows.tolist()]
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.ndim else value


def _cat(values: Sequence[Any]) -> Any:
    """Concatenates the rows of the values."""
    first = values[0]
    if isinstance(first, dict):
        return {name: _cat([value[name] for value in values]) for name in first}
    if isinstance(first, list):
        return [row for value in values for row in value]
    return torch.cat(list(values)) if isinstance(first, Tensor) and first.ndim else first


def _merged(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with changes, also inside dictionaries."""
    merged = dict(arguments)
    for name, value in changes.items():
        merged[name] = {**merged[name], **value} if isinstance(value, dict) else value
    return merged
