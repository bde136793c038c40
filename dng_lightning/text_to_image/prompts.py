"""What is asked for and what is avoided, in words, and as a text encoder reads it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.text_to_image.optional_deps import inform


@dataclass(frozen=True)
class Prompts:
    """P prompts, K negative ones and the empty one, numbered in this order.

    Attributes:
        wanted: the prompts.
        negative: what to avoid, each.
        tokens: what the encoder makes of all of them, (P + K + 1, length, width).
        pooled: and of each as a whole, (P + K + 1, width); None for models that are not told (all but SDXL).
    """

    wanted: tuple[str, ...]
    negative: tuple[str, ...]
    tokens: Tensor
    pooled: Tensor | None = None

    @property
    def null(self) -> int:
        """The number of the empty prompt."""
        return len(self.wanted) + len(self.negative)

    @property
    def forbidden(self) -> list[int]:
        """The numbers of the negative ones."""
        return list(range(len(self.wanted), self.null))

    def to(self, device: torch.device) -> "Prompts":
        """The same on a device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return replace(self, tokens=self.tokens.to(device), pooled=pooled)


def texts_of(prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The prompts and the negative ones, each as a list.

    Raises:
        SettingError: there is no prompt, a negative one is empty, or it is named twice.
    """
    wanted = [prompt] if isinstance(prompt, str) else list(prompt)
    negative = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt or [])
    if not wanted:
        raise SettingError('prompt is an empty list: name at least one ("" for any image)')
    if not all(text.strip() for text in negative):
        raise SettingError("negative_prompt is empty: say what to avoid, or set it to null to avoid nothing")
    for text in negative:
        if negative.count(text) > 1:
            raise SettingError(f"negative_prompt {text!r} is named twice")
        if text in wanted:
            inform(f"{text!r} is both wanted and avoided: nothing is pushed away from itself")
    return wanted, negative


def check_guidance(guidance: Guidance, observer: bool = False) -> None:
    """Refuse a guidance that must be told what only a classifier knows, or an observer.

    Args:
        guidance: the method.
        observer: whether there is one.

    Raises:
        SettingError: it is one.
    """
    if guidance.needs().classifier:
        raise SettingError(f"{display_name(guidance)} needs a classifier, and there is none of prompts: name another")
    if guidance.needs().observer is not None and not observer:
        raise SettingError(f"{display_name(guidance)} needs somebody to look at the images: set observer or reader")
