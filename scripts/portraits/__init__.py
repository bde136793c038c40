"""Drawn portraits with captions, a small flow-matching text-to-image transformer trained on them, and its judges.

Like ``scripts.captioned_digits``, an example of data, modules and judges outside the package.
"""

from scripts.captioned_images.pipeline_export import PipelineExport
from scripts.captioned_images.shared_classifier import SharedClassifierModule
from scripts.portraits.data import CaptionedPortraits
from scripts.portraits.reader import PortraitReader
from scripts.portraits.training import PixelTransformerModule

__all__ = ["CaptionedPortraits", "PipelineExport", "PixelTransformerModule", "PortraitReader", "SharedClassifierModule"]
