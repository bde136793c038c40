"""Prompts and negative prompts, as text and encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.chain_guidance import ChainGuidance
from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.serialization import contains, display_name
from dng_lightning.text_to_image.optional_deps import inform


@dataclass(frozen=True)
class Prompts:
    """P prompts, K negative prompts and the empty prompt, indexed in this order.

    Attributes:
        prompts: the P prompts.
        negatives: the K negative prompts.
        texts: arguments of the network with a row for each of the P + K + 1 texts.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    texts: Mapping[str, Tensor]

    @property
    def null(self) -> int:
        """Index of the empty prompt."""
        return len(self.prompts) + len(self.negatives)

    @property
    def forbidden(self) -> list[int]:
        """Indices of the negative prompts."""
        return list(range(len(self.prompts), self.null))

    def to(self, device: torch.device) -> "Prompts":
        """The prompts with their texts on a device."""
        return replace(self, texts={name: rows.to(device) for name, rows in self.texts.items()})

    def take(self, numbers: Tensor | list[int]) -> dict[str, Tensor]:
        """The arguments of the network for the texts with these indices, (B,)."""
        return {name: rows[numbers] for name, rows in self.texts.items()}


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


def check_guidance(
    guidance: Guidance, observer: bool = False, in_pipeline: bool = True, denoises_images: bool = False
) -> None:
    """Check that a guidance needs nothing that a model of prompts lacks.

    Args:
        guidance: guidance method.
        observer: whether there is an observer.
        in_pipeline: whether a pipeline of diffusers has the loop over the steps.
        denoises_images: whether the states of the chain are images, not latents.

    Raises:
        SettingError: the guidance needs a noise-conditional classifier, a probe, an observer that is missing, images to
            compare with references, or whole chains to choose among.
    """
    needs, name = guidance.needs(), display_name(guidance)
    if contains(guidance, ReferenceGuidance) and not denoises_images:
        raise SettingError(
            f"{name} compares images with reference images, and this model denoises latents: describe what to avoid in "
            "a negative prompt, for DynamicNegativeGuidance or NegativePrompting"
        )
    if needs.classifier or needs.probe:
        part = "classifier" if needs.classifier else "probe"
        raise SettingError(f"{name} needs a {part}, which prompts do not have: name another")
    if needs.observer is not None and not observer:
        raise SettingError(f"{name} needs an observer of the images: set observer or reader")
    if contains(guidance, ChainGuidance) and in_pipeline:
        raise SettingError(
            f"{name} chooses among whole chains, and a pipeline draws each once: take a TextToImageSampler, or sample()"
        )


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
