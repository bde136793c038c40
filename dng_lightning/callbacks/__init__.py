"""Callbacks: weight averaging, guided sampling during training, exporting a training, writing a prediction."""

from dng_lightning.callbacks.ema import EMA
from dng_lightning.callbacks.export import Export
from dng_lightning.callbacks.guided_sampling import GuidedSampling
from dng_lightning.callbacks.image_writer import ImageWriter

__all__ = ["EMA", "Export", "GuidedSampling", "ImageWriter"]
