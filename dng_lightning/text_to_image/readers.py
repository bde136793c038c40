"""Readers, which label generated images by the attributes of their prompt and the negative prompts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from dng_lightning.evaluation.features import Judge
from dng_lightning.evaluation.label_space import LabelSpace


class PromptJudge(Judge, Protocol):
    """A judge whose classes come from a prompt and its negative prompts."""

    def probabilities(self, x: Tensor) -> Tensor:
        """The probability that each image ``x``, see ``label``, shows what each negative prompt names, (B, K)."""


class PromptReader(ABC):
    """Reads the attributes of images of a known kind, for example with one classifier for each attribute.

    Attributes:
        name: name of its judge's features in tables.
        image_shape: (C, H, W) of the images.
        net: its networks.
    """

    name: str
    image_shape: tuple[int, int, int]
    net: nn.Module

    @abstractmethod
    def understand(self, prompts: Sequence[str], negatives: Sequence[str]) -> tuple[LabelSpace, PromptJudge | None]:
        """The labels of images of these prompts, and their judge; None without negative prompts.

        Raises:
            SettingError: it cannot parse a prompt.
        """

    @abstractmethod
    def read(self, images: Tensor) -> Tensor:
        """The label of every attribute, int64 (B, attributes), of images (B, C, H, W) in [-1, 1]."""
