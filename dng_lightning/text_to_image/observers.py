"""Who looks at the images that are on their way, and says which of the negative prompts they come to show."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.modules.classifier import ClassifierModule


class PromptObserver(ABC):
    """Says how likely each image shows each of some things that are named in words; see ``observation.Observer``."""

    def check(self, things: Sequence[str], image_shape: tuple[int, int, int]) -> None:  # noqa: B027  # or nothing
        """Refuse, before anything is drawn, what it cannot look for.

        Args:
            things: the negative prompts.
            image_shape: (3, height, width) of what it will be shown.

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
    """Asks classifiers of images, one of them for each class that a negative prompt names.

    Where they also label the images, they judge their own work: take others for a table.

    Args:
        classifiers: their checkpoints, of different classes.
        names: the class, or the classes, that a negative prompt means if it is not the name of one, such as
            ``{"a red seven": ["red", "7"]}``; the probabilities of several are multiplied.

    Raises:
        SettingError: a checkpoint cannot be used.
    """

    def __init__(self, classifiers: list[str], names: dict[str, str | list[str]] | None = None) -> None:
        self.classifiers = {name: ClassifierModule.load(name) for name in classifiers}
        self.names = dict(names or {})

    def check(self, things: Sequence[str], image_shape: tuple[int, int, int]) -> None:
        """See ``PromptObserver.check``."""
        for name, classifier in self.classifiers.items():
            if classifier.image_shape != image_shape:
                raise SettingError(f"classifier {name} judges images of {classifier.image_shape}, not {image_shape}")
        for thing in things:
            self._classes(thing)

    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """See ``PromptObserver.probabilities``."""
        seen = {name: module.to(images.device).probabilities(images) for name, module in self.classifiers.items()}
        each = [torch.stack([seen[name][:, label] for name, label in self._classes(thing)], 1) for thing in things]
        return torch.stack([columns.prod(1) for columns in each], 1)

    def _classes(self, thing: str) -> list[tuple[str, int]]:
        """The classes that a prompt means: for each the classifier's name and its label."""
        meant = self.names.get(thing, thing)
        found = []
        for name in [meant] if isinstance(meant, str) else meant:
            known = [
                (classifier, label)
                for classifier, module in self.classifiers.items()
                for label, text in enumerate(module.class_names)
                if text.lower() == name.lower()
            ]
            if len(known) != 1:
                texts = (text for module in self.classifiers.values() for text in module.class_names)
                raise SettingError(
                    f"the observer knows {len(known) or 'no'} classes {name!r} for {thing!r}; set its names to one of "
                    f"{', '.join(texts)}"
                )
            found += known
        return found
