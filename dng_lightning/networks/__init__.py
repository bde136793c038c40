"""Networks: plain `torch.nn.Module`s, independent of noise schedules, guidance and data sets."""

from dng_lightning.networks.classifier import ImageClassifier
from dng_lightning.networks.diffusers import DiffusersNetwork
from dng_lightning.networks.probe import FeatureProbe
from dng_lightning.networks.unet import UNet

__all__ = ["DiffusersNetwork", "FeatureProbe", "ImageClassifier", "UNet"]
