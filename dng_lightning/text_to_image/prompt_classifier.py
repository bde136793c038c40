"""Classifies images of digits by what the prompts ask for and avoid."""

import torch
from torch import Tensor, nn

from dng_lightning.data.attributes import VALUES
from dng_lightning.evaluation.asked import Asked
from dng_lightning.evaluation.runs import Labels
from dng_lightning.text_to_image.attribute_classifier import AttributeClassifier


class PromptClassifier(nn.Module):
    """Sorts images into the kinds that the prompts are about, as a ``ClassifierModule`` does into classes.

    Args:
        reader: classifies the attributes.
        asked: what is asked for and what is avoided.

    Attributes:
        net: the ``reader``; images are compared by its features.
        class_names: of the kinds.
    """

    def __init__(self, reader: AttributeClassifier, asked: Asked) -> None:
        super().__init__()
        self.net, self.asked = reader, asked
        self.class_names = asked.names

    def label(self, x: Tensor) -> Labels:
        """The kind of each image, its probability, and the labels of all attributes, (B, 4).

        Args:
            x: (B, 3, 32, 32) in [-1, 1].
        """
        best = [p.max(1) for p in self.net.probabilities(x)]
        attributes = torch.stack([found.indices for found in best], 1)
        seen = [found.values for name, found in zip(VALUES, best, strict=True) if name in self.asked.avoided]
        return Labels(self.asked.labels(attributes), torch.stack(seen, 1).prod(1), attributes)

    def emerging(self, x: Tensor) -> Tensor:
        """The probability of what each negative prompt names, (B, K): of all of its attributes."""
        each = dict(zip(VALUES, self.net.probabilities(x), strict=True))
        named = [[each[name][:, label] for name, label in n.labels().items()] for n in self.asked.negatives]
        return torch.stack([torch.stack(probabilities, 1).prod(1) for probabilities in named], 1)
