"""Classifiers in tests."""

from dng_lightning.networks.classifier import ImageClassifier


def small_net() -> ImageClassifier:
    """A narrow classifier of grey images in ten classes."""
    return ImageClassifier(1, 10, channels=[8, 16], features=12)
