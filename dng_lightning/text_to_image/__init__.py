"""The same guidances on diffusers' latent text-to-image models (extra ``text-to-image``)."""

from dng_lightning.text_to_image.autoencoder import AutoencoderModule
from dng_lightning.text_to_image.model import TextToImageModel
from dng_lightning.text_to_image.observers import ClassifierObserver, PromptObserver
from dng_lightning.text_to_image.pipelines import guided
from dng_lightning.text_to_image.predictor import TextPredictor
from dng_lightning.text_to_image.prompts import Prompts
from dng_lightning.text_to_image.reader import AttributeReader
from dng_lightning.text_to_image.sampler import TextToImageSampler
from dng_lightning.text_to_image.training import TextToImageModule
from dng_lightning.text_to_image.vision_language import VisionLanguageObserver

__all__ = [
    "AttributeReader",
    "AutoencoderModule",
    "ClassifierObserver",
    "PromptObserver",
    "Prompts",
    "TextPredictor",
    "TextToImageModel",
    "TextToImageModule",
    "TextToImageSampler",
    "VisionLanguageObserver",
    "guided",
]
