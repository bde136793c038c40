"""Prompts and negative prompts, as text and encoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.text_to_image.optional_deps import inform
from dng_lightning.text_to_image.text_embeddings import TextEmbeddings


@dataclass(frozen=True)
class Prompts:
    """P prompts, K negative prompts and the empty prompt, indexed in this order.

    Attributes:
        prompts: the P prompts.
        negatives: the K negative prompts.
        texts: embeddings of all P + K + 1 texts.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    texts: TextEmbeddings

    @property
    def null(self) -> int:
        """Index of the empty prompt."""
        return len(self.prompts) + len(self.negatives)

    @property
    def forbidden(self) -> list[int]:
        """Indices of the negative prompts."""
        return list(range(len(self.prompts), self.null))

    def to(self, device: torch.device) -> "Prompts":
        """The prompts with their embeddings on a device."""
        return replace(self, texts=self.texts.to(device))


def texts_of(prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The prompts and the negative prompts, each as a list.

    Raises:
        SettingError: there is no prompt, or a negative prompt is empty or named twice.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negatives = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt or [])
    if not prompts:
        raise SettingError('prompt is an empty list: name at least one ("" for any image)')
    if not all(text.strip() for text in negatives):
        raise SettingError("negative_prompt is empty: say what to avoid, or set it to null to avoid nothing")
    for text in negatives:
        if negatives.count(text) > 1:
            raise SettingError(f"negative_prompt {text!r} is named twice")
        if text in prompts:
            inform(f"{text!r} is both a prompt and a negative prompt: its images are not pushed away from it")
    return prompts, negatives


def check_guidance(guidance: Guidance, observer: bool = False) -> None:
    """Check that a guidance needs no noise-conditional classifier, and no observer if there is none.

    Args:
        guidance: guidance method.
        observer: whether there is an observer.

    Raises:
        SettingError: the guidance needs one of them.
    """
    if guidance.needs().classifier:
        raise SettingError(f"{display_name(guidance)} needs a classifier, which prompts do not have: name another")
    if guidance.needs().observer is not None and not observer:
        raise SettingError(f"{display_name(guidance)} needs an observer of the images: set observer or reader")
