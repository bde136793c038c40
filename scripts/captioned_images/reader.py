"""Reads images with exact attributes by what their prompts ask for and avoid."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.evaluation.runs import Labels
from dng_lightning.text_to_image.observers import PromptJudge, PromptObserver, PromptReader
from scripts.captioned_images.attributes import Attributes
from scripts.captioned_images.data import CaptionedImages
from scripts.captioned_images.prompt_adherence import PromptAccuracy, PromptLabelSpace


class AttributeJudge(Protocol):
    """Classifies all attributes of an image, of one network an attribute or of one network for all."""

    def read(self, x: Tensor) -> Tensor:
        """The labels of all attributes, int64 (B, A), of images (B, C, H, W) in [-1, 1]."""

    def probabilities(self, x: Tensor) -> list[Tensor]:
        """The probability of every value of each attribute, A of (B, values), float32."""


class AttributeReader(PromptReader, PromptObserver):
    """Judges images of one prompt by what its negative prompts name, or images of several by their own prompt.

    It is an observer too; for an independent evaluation, of another checkpoint than the reader's. A subclass says which
    data it knows, and how its classifiers are loaded.

    Args:
        classifiers: name of the checkpoint, or what the names of several begin with.

    Raises:
        SettingError: there is none, or it cannot be used.
    """

    of: ClassVar[type[CaptionedImages]]
    net: Any  # a module, and an AttributeJudge

    def __init__(self, classifiers: str) -> None:
        self.net, self.name = self.load(classifiers), f"{classifiers}-reader"
        self.image_shape = self.of.image_shape  # type: ignore[assignment]  # a class attribute of these data

    @classmethod
    @abstractmethod
    def load(cls, name: str) -> Any:
        """Load what classifies the attributes."""

    def understand(self, prompts: Sequence[str], negatives: Sequence[str]) -> tuple[LabelSpace, PromptJudge | None]:
        """See ``PromptReader.understand``; with negative prompts there is one prompt."""
        if not negatives:
            return PromptAccuracy.in_words(self.of, prompts), None
        if len(prompts) > 1:
            raise SettingError("a reader judges what is avoided by one prompt: give one, or set reader to null")
        label_space = PromptLabelSpace.in_words(self.of, prompts[0], negatives)
        return label_space, PromptClassifier(self.net, label_space, self.name)

    def read(self, images: Tensor) -> Tensor:
        """See ``PromptReader.read``."""
        read: Tensor = self.net.to(images.device).read(images)
        return read

    def check(self, things: Sequence[str], image_shape: tuple[int, int, int]) -> None:
        """See ``PromptObserver.check``."""
        if image_shape != self.image_shape:
            raise SettingError(f"{type(self).__name__} observes images of {self.image_shape}, not {image_shape}")
        for thing in things:
            if not self.of.parse(thing).named():
                raise SettingError(f"{thing!r} names nothing that an image can show")

    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """See ``PromptObserver.probabilities``."""
        return shown(self.net.to(images.device), [self.of.parse(thing) for thing in things], images)


class PromptClassifier(nn.Module):
    """Sorts images into the label space of the prompts, as a ``ClassifierModule`` does into classes.

    Args:
        net: classifies the attributes.
        label_space: what the prompt asks for and what is avoided.
        name: name of the features of ``net`` in tables.

    Attributes:
        net: the same; images are compared by its features.
        class_names: of the label_space.
    """

    net: Any  # a module, and an AttributeJudge

    def __init__(self, net: Any, label_space: PromptLabelSpace, name: str) -> None:
        super().__init__()
        self.net, self.label_space, self.name = net, label_space, name
        self.class_names = label_space.names

    def label(self, x: Tensor) -> Labels:
        """The kind of each image, its probability, and the labels of all attributes, (B, A).

        Args:
            x: (B, C, H, W) in [-1, 1].
        """
        names, best = self.label_space.of.kind.values, [p.max(1) for p in self.net.probabilities(x)]
        attributes = torch.stack([found.indices for found in best], 1)
        seen = [found.values for name, found in zip(names, best, strict=True) if name in self.label_space.avoided]
        return Labels(self.label_space.labels(attributes), torch.stack(seen, 1).prod(1), attributes)

    def probabilities(self, x: Tensor) -> Tensor:
        """The probability of what each negative prompt names, (B, K)."""
        return shown(self.net, self.label_space.negatives, x)


def shown(net: AttributeJudge, things: Sequence[Attributes], x: Tensor) -> Tensor:
    """The probability that images (B, C, H, W) in [-1, 1] have all attributes of each thing, (B, K)."""
    each = dict(zip(things[0].values, net.probabilities(x), strict=True))
    named = [[each[name][:, label] for name, label in thing.labels().items()] for thing in things]
    return torch.stack([torch.stack(probabilities, 1).prod(1) for probabilities in named], 1)
