"""A demonstration: coloured digits with captions, a small text-to-image model trained on them, and its judges.

Nothing else in the package depends on it. Its commands are ``dng fit|predict|test --config captioned_digits*.yaml``.
"""

from dng_lightning.captioned_digits.attribute_classifier import AttributeClassifier
from dng_lightning.captioned_digits.autoencoder import AutoencoderModule
from dng_lightning.captioned_digits.data import CaptionedDigits
from dng_lightning.captioned_digits.pipeline_export import PipelineExport
from dng_lightning.captioned_digits.prompt_sampling import PromptSampling
from dng_lightning.captioned_digits.reader import DigitReader
from dng_lightning.captioned_digits.training import TextToImageModule

__all__ = [
    "AttributeClassifier",
    "AutoencoderModule",
    "CaptionedDigits",
    "DigitReader",
    "PipelineExport",
    "PromptSampling",
    "TextToImageModule",
]
