"""Drawn portraits with captions, and a small flow-matching text-to-image transformer trained on them.

Like ``scripts.captioned_digits``, an example of data and modules outside the package.
"""

from scripts.captioned_images.pipeline_export import PipelineExport
from scripts.portraits.data import CaptionedPortraits
from scripts.portraits.training import PixelTransformerModule

__all__ = ["CaptionedPortraits", "PipelineExport", "PixelTransformerModule"]
