"""Callbacks: weight averaging, sampling and charts during training, export, evaluation, and writing of images."""

from dng_lightning.callbacks.calibration_writer import CalibrationWriter
from dng_lightning.callbacks.ema import EMA
from dng_lightning.callbacks.export import Export
from dng_lightning.callbacks.guided_sampling import GuidedSampling
from dng_lightning.callbacks.hparams import HParams
from dng_lightning.callbacks.image_writer import ImageWriter
from dng_lightning.callbacks.reference_writer import ReferenceWriter
from dng_lightning.callbacks.results_writer import ResultsWriter

__all__ = [
    "EMA",
    "CalibrationWriter",
    "Export",
    "GuidedSampling",
    "HParams",
    "ImageWriter",
    "ReferenceWriter",
    "ResultsWriter",
]
