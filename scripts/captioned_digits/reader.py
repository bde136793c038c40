"""Reads images of coloured digits by what their prompts ask for and avoid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.evaluation.runs import Labels
from dng_lightning.text_to_image.readers import PromptJudge, PromptReader
from scripts.captioned_digits.attribute_classifier import AttributeClassifier
from scripts.captioned_digits.attributes import VALUES
from scripts.captioned_digits.data import CaptionedDigits
from scripts.captioned_digits.prompt_adherence import PromptAccuracy, PromptLabelSpace


class DigitReader(PromptReader):
    """Judges images of one prompt by what its negative prompts name, or images of several by their own prompt.

    Args:
        classifiers: one an attribute, see ``AttributeClassifier.load``.

    Raises:
        SettingError: there is none of one of them, or it cannot be used.
    """

    image_shape = CaptionedDigits.image_shape
    net: AttributeClassifier

    def __init__(self, classifiers: str = "captioned-digits") -> None:
        self.net, self.name = AttributeClassifier.load(classifiers), f"{classifiers}-reader"

    def understand(self, prompts: Sequence[str], negatives: Sequence[str]) -> tuple[LabelSpace, PromptJudge | None]:
        """See ``PromptReader.understand``; with negative prompts there is one prompt."""
        if not negatives:
            return PromptAccuracy.in_words(prompts), None
        if len(prompts) > 1:
            raise SettingError("a reader judges what is avoided by one prompt: give one, or set reader to null")
        label_space = PromptLabelSpace.in_words(prompts[0], negatives)
        return label_space, PromptClassifier(self.net, label_space)

    def read(self, images: Tensor) -> Tensor:
        """See ``PromptReader.read``."""
        return self.net.to(images.device).read(images)


class PromptClassifier(nn.Module):
    """Sorts images into the label space of the prompts, as a ``ClassifierModule`` does into classes.

    Args:
        net: classifies the attributes.
        label_space: what the prompt asks for and what is avoided.

    Attributes:
        net: the same; images are compared by its features.
        class_names: of the label_space.
    """

    def __init__(self, net: AttributeClassifier, label_space: PromptLabelSpace) -> None:
        super().__init__()
        self.net, self.label_space = net, label_space
        self.class_names = label_space.names

    def label(self, x: Tensor) -> Labels:
        """The kind of each image, its probability, and the labels of all attributes, (B, 4).

        Args:
            x: (B, 3, 32, 32) in [-1, 1].
        """
        best = [p.max(1) for p in self.net.probabilities(x)]
        attributes = torch.stack([found.indices for found in best], 1)
        seen = [found.values for name, found in zip(VALUES, best, strict=True) if name in self.label_space.avoided]
        return Labels(self.label_space.labels(attributes), torch.stack(seen, 1).prod(1), attributes)

    def probabilities(self, x: Tensor) -> Tensor:
        """The probability of what each negative prompt names, (B, K): of all of its attributes."""
        each = dict(zip(VALUES, self.net.probabilities(x), strict=True))
        named = [[each[name][:, label] for name, label in n.labels().items()] for n in self.label_space.negatives]
        return torch.stack([torch.stack(probabilities, 1).prod(1) for probabilities in named], 1)
