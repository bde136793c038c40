"""The same guidances on diffusers' latent text-to-image models (extra ``text-to-image``)."""

from dng_lightning.text_to_image.autoencoder import AutoencoderModule
from dng_lightning.text_to_image.model import TextToImageModel
from dng_lightning.text_to_image.predictor import TextPredictor
from dng_lightning.text_to_image.prompts import Prompts
from dng_lightning.text_to_image.reader import AttributeReader
from dng_lightning.text_to_image.sampler import TextToImageSampler
from dng_lightning.text_to_image.training import TextToImageModule

__all__ = [
    "AttributeReader",
    "AutoencoderModule",
    "Prompts",
    "TextPredictor",
    "TextToImageModel",
    "TextToImageModule",
    "TextToImageSampler",
]
