"""Classifies all attributes of an image of a digit that its caption can name, each by a classifier of its own."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.modules.classifier import ClassifierModule
from scripts.captioned_digits.attributes import VALUES


class AttributeClassifier(nn.Module):
    """The classifiers of all attributes; images are compared by their concatenated features.

    Args:
        classifiers: one for each of ``attributes.VALUES``.

    Attributes:
        names: of the attributes, in the order of the labels.
        num_features: of all classifiers together.

    Raises:
        SettingError: one is missing, or knows other values.
    """

    names = tuple(VALUES)

    def __init__(self, classifiers: Mapping[str, ClassifierModule]) -> None:
        super().__init__()
        for name, values in VALUES.items():
            known = classifiers[name].class_names if name in classifiers else ()
            if known != values:
                raise SettingError(f"the classifier of the {name} knows {', '.join(known) or 'nothing'}: name another")
        self.classifiers = nn.ModuleList(classifiers[name] for name in VALUES)
        self.num_features = sum(c.net.num_features for c in self._each())
        self.eval()

    @classmethod
    def load(cls, name: str) -> Self:
        """Load the classifiers for use.

        Args:
            name: what their checkpoints' names begin with: ``captioned-digits`` for ``captioned-digits-digit``,
                ``-colour``, ``-thickness`` and ``-background``.

        Raises:
            SettingError: there is none of one of them, or it cannot be used; see ``ClassifierModule.load``.
        """
        return cls({attribute: ClassifierModule.load(f"{name}-{attribute}") for attribute in VALUES})

    def read(self, x: Tensor) -> Tensor:
        """The labels of all attributes, int64 (B, 4), of images (B, 3, 32, 32) in [-1, 1]."""
        return torch.stack([p.argmax(1) for p in self.probabilities(x)], 1)

    def probabilities(self, x: Tensor) -> list[Tensor]:
        """The probability of every value of each attribute, four of (B, values), float32."""
        return [classifier.probabilities(x) for classifier in self._each()]

    def features(self, x: Tensor) -> Tensor:
        """The penultimate features of all of them, (B, num_features)."""
        return torch.cat([c.net.features(x) for c in self._each()], 1)

    def _each(self) -> list[Any]:
        return list(self.classifiers)  # of ImageClassifiers, or networks alike
