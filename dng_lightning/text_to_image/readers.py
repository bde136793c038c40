"""Readers of generated images: which of them show what their prompt asks for, and what the negative prompts name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from dng_lightning.evaluation.features import Judge
from dng_lightning.evaluation.label_space import LabelSpace


class PromptJudge(Judge, Protocol):
    """A judge whose classes are what a prompt and its negative prompts are about."""

    def probabilities(self, x: Tensor) -> Tensor:
        """The probability that each image shows what each negative prompt names, (B, K); ``x`` as for ``label``."""


class PromptReader(ABC):
    """Reads images of a known kind, such as one classifier an attribute.

    Attributes:
        name: what the features of its judge are reported under.
        image_shape: (C, H, W) of the images that it knows.
        net: its networks.
    """

    name: str
    image_shape: tuple[int, int, int]
    net: nn.Module

    @abstractmethod
    def understand(self, prompts: Sequence[str], negatives: Sequence[str]) -> tuple[LabelSpace, PromptJudge | None]:
        """What images of these prompts are sorted into, and who sorts them; None where nothing is avoided.

        Raises:
            SettingError: a prompt is not understood.
        """

    @abstractmethod
    def read(self, images: Tensor) -> Tensor:
        """The label of every attribute, int64 (B, attributes), of images (B, C, H, W) in [-1, 1]."""
