"""Reads portraits by what their prompts ask for and avoid."""

from scripts.captioned_images.reader import AttributeReader
from scripts.captioned_images.shared_classifier import SharedClassifierModule
from scripts.portraits.data import CaptionedPortraits


class PortraitReader(AttributeReader):
    """See ``AttributeReader``.

    Args:
        classifiers: checkpoint of a ``SharedClassifierModule``.

    Raises:
        SettingError: there is none, or it cannot be used.
    """

    of = CaptionedPortraits

    def __init__(self, classifiers: str = "portraits-attributes") -> None:
        super().__init__(classifiers)

    @classmethod
    def load(cls, name: str) -> SharedClassifierModule:
        """See ``SharedClassifierModule.load``."""
        return SharedClassifierModule.load(name)
