"""Callbacks: weight averaging, guided sampling during training, and writing the images of a prediction."""

from dng_lightning.callbacks.ema import EMA

__all__ = ["EMA"]
