"""Coloured digits with captions, a small text-to-image model trained on them, and its judges.

An example of data, modules and judges outside the package. Its commands, ``dng fit | predict | test --config
captioned_digits*.yaml``, run from the root of the repository, which makes its classes importable.
"""

from scripts.captioned_digits.attribute_classifier import AttributeClassifier
from scripts.captioned_digits.autoencoder import AutoencoderModule
from scripts.captioned_digits.data import CaptionedDigits
from scripts.captioned_digits.prompt_sampling import PromptSampling
from scripts.captioned_digits.reader import DigitReader
from scripts.captioned_digits.training import TextToImageModule
from scripts.captioned_images.pipeline_export import PipelineExport

__all__ = [
    "AttributeClassifier",
    "AutoencoderModule",
    "CaptionedDigits",
    "DigitReader",
    "PipelineExport",
    "PromptSampling",
    "TextToImageModule",
]
