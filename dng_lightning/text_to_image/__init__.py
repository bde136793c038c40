"""The same guidances on diffusers' latent text-to-image models (extra ``text-to-image``)."""

from dng_lightning.text_to_image.model import TextToImageModel
from dng_lightning.text_to_image.pipelines import guided
from dng_lightning.text_to_image.predictor import TextPredictor
from dng_lightning.text_to_image.prompts import Prompts
from dng_lightning.text_to_image.sampler import TextToImageSampler

__all__ = ["Prompts", "TextPredictor", "TextToImageModel", "TextToImageSampler", "guided"]
