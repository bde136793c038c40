"""Who says of an image of a digit whether it is what the prompts are about."""

import torch
from torch import Tensor, nn

from dng_lightning.data.attributes import VALUES
from dng_lightning.evaluation.asked import Asked
from dng_lightning.evaluation.runs import Labels
from dng_lightning.text_to_image.attribute_classifier import AttributeClassifier


class PromptClassifier(nn.Module):
    """Sorts images into the kinds that some prompts are about; what a ``ClassifierModule`` is for classes.

    Args:
        reader: reads the attributes.
        asked: what is asked for and what is avoided.

    Attributes:
        net: the reader, whose features images are compared in.
        class_names: of the kinds.
    """

    def __init__(self, reader: AttributeClassifier, asked: Asked) -> None:
        super().__init__()
        self.net, self.asked = reader, asked
        self.class_names = asked.names

    def label(self, x: Tensor) -> Labels:
        """The kind of each image, the probability of what was read of it, and all that was read, (B, 4).

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
