"""Reads images of coloured digits by what their prompts ask for and avoid."""

from scripts.captioned_digits.attribute_classifier import AttributeClassifier
from scripts.captioned_digits.data import CaptionedDigits
from scripts.captioned_images.reader import AttributeReader


class DigitReader(AttributeReader):
    """See ``AttributeReader``.

    Args:
        classifiers: one an attribute, see ``AttributeClassifier.load``.

    Raises:
        SettingError: there is none of one of them, or it cannot be used.
    """

    of = CaptionedDigits

    def __init__(self, classifiers: str = "captioned-digits") -> None:
        super().__init__(classifiers)

    @classmethod
    def load(cls, name: str) -> AttributeClassifier:
        """See ``AttributeClassifier.load``."""
        return AttributeClassifier.load(name)
