"""A call of a pipeline's network for some images and texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dng_lightning.text_to_image.attention import ForbiddenTexts
from dng_lightning.text_to_image.layouts import ADDED, Layout, Texts

POSITIONS = "txt_ids"  # the argument with a row for each token, (L, ...)


@dataclass(frozen=True)
class NetworkCall:
    """Arguments of a call of the network for B images.

    Attributes:
        layout: layout of the pipeline.
        arguments: arguments by name, those in ``added_cond_kwargs`` by ``layouts.ADDED`` and their name.
    """

    layout: Layout
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, layout: Layout, arguments: Mapping[str, Any]) -> "NetworkCall":
        """The call with these arguments of the network's ``forward``."""
        added = arguments.get(ADDED[:-1]) or {}
        return cls(layout, {**arguments, **{ADDED + name: value for name, value in added.items()}})

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of the network's ``forward``."""
        added = {name.removeprefix(ADDED): value for name, value in self.arguments.items() if name.startswith(ADDED)}
        inputs = {name: value for name, value in self.arguments.items() if not name.startswith(ADDED)}
        return inputs | {ADDED[:-1]: added} if added else inputs

    @property
    def latents(self) -> Any:
        """The latents as the network takes them, a tensor or a list."""
        return self.arguments[self.layout.latents]

    @property
    def x_t(self) -> Tensor:
        """The latents, (B, ...)."""
        return torch.stack(self.latents) if isinstance(self.latents, list) else self.latents

    @property
    def text(self) -> Any:
        """The text, a row for each image."""
        return self.arguments[self.layout.text]

    def take(self, rows: Tensor) -> "NetworkCall":
        """The call for some of the images, by their indices (N,), which may repeat."""
        return self._with({name: _take(value, rows) for name, value in self._rows().items()})

    def with_text(self, text: Texts) -> "NetworkCall":
        """The call with another text, the same for all images."""
        rows = torch.zeros(len(self.latents), dtype=torch.long)
        return self._with({name: _take(value, rows) for name, value in text.items()})

    def with_forbidden(self, texts: ForbiddenTexts) -> "NetworkCall":
        """The same call with the tokens of forbidden texts behind those of each text."""
        changes, mask = {self.layout.text: texts.append(self.text)}, self.layout.mask
        if mask and (own := self.arguments.get(mask)) is not None:
            changes[mask] = torch.cat([own, *(part.to(own).expand(len(own), -1) for part in texts.masks)], 1)
        if (rows := self.arguments.get(POSITIONS)) is not None:
            changes[POSITIONS] = torch.cat([rows, *(rows[: len(text)] for text in texts.tokens)])
        return self._with(changes)

    def with_latents(self, x_t: Tensor) -> "NetworkCall":
        """The call with other latents (B, ...), in the precision of its own."""
        moved = x_t.to(self.latents[0].dtype)
        return self._with({self.layout.latents: list(moved) if isinstance(self.latents, list) else moved})

    def fits(self, other: "NetworkCall") -> bool:
        """Whether one call can evaluate both."""
        same = isinstance(self.text, list) or self.text.shape[1:] == other.text.shape[1:]
        return self.layout.together and same

    def joined(self, others: "Sequence[NetworkCall]") -> "NetworkCall":
        """One call for the images of this call and of the others."""
        return self._with({n: _cat([value, *(o.arguments[n] for o in others)]) for n, value in self._rows().items()})

    def _rows(self) -> dict[str, Any]:
        return {name: self.arguments[name] for name in self.layout.rows if name in self.arguments}

    def _with(self, changes: Mapping[str, Any]) -> "NetworkCall":
        return NetworkCall(self.layout, {**self.arguments, **changes})


def _take(value: Any, rows: Tensor) -> Any:
    """Some rows of a tensor or a list; a value without rows stays as it is."""
    if isinstance(value, list):
        return [value[row] for row in rows.tolist()]
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.ndim else value


def _cat(values: Sequence[Any]) -> Any:
    """The rows of tensors or lists, one after the other; a value without rows stays as it is."""
    if isinstance(values[0], list):
        return [row for value in values for row in value]
    return torch.cat(list(values)) if isinstance(values[0], Tensor) and values[0].ndim else values[0]
