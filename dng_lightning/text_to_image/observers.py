"""Observers estimate how likely the denoised images show what the negative prompts name; readers label the images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.features import Judge
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.modules.judges import load_classifier


class PromptObserver(ABC):
    """Estimates the probability that each image shows what each negative prompt names."""

    def check(self, things: Sequence[str], image_shape: tuple[int, int, int]) -> None:  # noqa: B027  # optional
        """Check, before sampling, that the observer knows the negative prompts.

        Args:
            things: the K negative prompts.
            image_shape: (3, height, width) of the images.

        Raises:
            SettingError: it does not know one of them, or not images of this shape.
        """

    @abstractmethod
    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """The probability that each image shows each thing, (B, K).

        Args:
            images: decoded images (B, 3, height, width) in [-1, 1]; at high noise they are blurred.
            things: the K negative prompts.
        """


class ClassifierObserver(PromptObserver):
    """Takes the probabilities of image classifiers that know the classes of the negative prompts.

    For an independent evaluation, label the images with other classifiers.

    Args:
        classifiers: classifiers with different classes: checkpoints, or classifiers of other libraries, see
            ``GuidedSampler``.
        names: class or classes of a negative prompt that is not a class name, such as
            ``{"a red seven": ["red", "7"]}``; the probabilities of several classes are multiplied.

    Raises:
        SettingError: a checkpoint cannot be used.
    """

    def __init__(
        self, classifiers: list[PretrainedClassifier | str], names: dict[str, str | list[str]] | None = None
    ) -> None:
        self.classifiers = {
            given.name if isinstance(given, PretrainedClassifier) else given: load_classifier(given)
            for given in classifiers
        }
        self.names = dict(names or {})

    def check(self, things: Sequence[str], image_shape: tuple[int, int, int]) -> None:
        """See ``PromptObserver.check``."""
        for name, classifier in self.classifiers.items():
            if classifier.image_shape not in (image_shape, None):  # None: images of any size
                raise SettingError(f"classifier {name} judges images of {classifier.image_shape}, not {image_shape}")
        for thing in things:
            self._classes(thing)

    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """See ``PromptObserver.probabilities``."""
        seen = {name: module.to(images.device).probabilities(images) for name, module in self.classifiers.items()}
        each = [torch.stack([seen[name][:, label] for name, label in self._classes(thing)], 1) for thing in things]
        return torch.stack([columns.prod(1) for columns in each], 1)

    def _classes(self, thing: str) -> list[tuple[str, int]]:
        """The classes of a negative prompt, each as the name of a classifier and a label."""
        classes = [(c, *pair) for c, module in self.classifiers.items() for pair in enumerate(module.class_names)]
        meant, found = self.names.get(thing, thing), []
        for name in [meant] if isinstance(meant, str) else meant:
            known = [(classifier, label) for classifier, label, text in classes if text.lower() == name.lower()]
            if len(known) != 1:
                raise SettingError(
                    f"the observer knows {len(known) or 'no'} classes {name!r} for {thing!r}; set its names to one of "
                    f"{', '.join(text for *_, text in classes)}"
                )
            found += known
        return found


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
