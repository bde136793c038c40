"""Observers of the denoised images: which of the negative prompts is emerging in them?"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.modules.judges import load_classifier


class PromptObserver(ABC):
    """Estimates the probability that each image shows each of some things that are named in words."""

    def check(self, things: Sequence[str], image_shape: tuple[int, int, int]) -> None:  # noqa: B027  # or nothing
        """Refuse, before anything is drawn, things that the observer does not know.

        Args:
            things: the negative prompts.
            image_shape: (3, height, width) of the images.

        Raises:
            SettingError: naming it.
        """

    @abstractmethod
    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """The probability that each image shows each thing, (B, K).

        Args:
            images: decoded, (B, 3, height, width) in [-1, 1]; early in a chain they are blurred.
            things: the K negative prompts.
        """


class ClassifierObserver(PromptObserver):
    """Asks image classifiers, one for each class that a negative prompt names.

    Where they also label the images, they judge their own work: take other ones for a table.

    Args:
        classifiers: of different classes; checkpoints or classifiers of another library, see ``GuidedSampler``.
        names: the class, or the classes, that a negative prompt means if it is not the name of one, such as
            ``{"a red seven": ["red", "7"]}``; the probabilities of several are multiplied.

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
            if classifier.image_shape not in (image_shape, None):  # None takes images of any size
                raise SettingError(f"classifier {name} judges images of {classifier.image_shape}, not {image_shape}")
        for thing in things:
            self._classes(thing)

    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """See ``PromptObserver.probabilities``."""
        seen = {name: module.to(images.device).probabilities(images) for name, module in self.classifiers.items()}
        each = [torch.stack([seen[name][:, label] for name, label in self._classes(thing)], 1) for thing in things]
        return torch.stack([columns.prod(1) for columns in each], 1)

    def _classes(self, thing: str) -> list[tuple[str, int]]:
        """The classes that a prompt means: the name of a classifier and a label, each."""
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
