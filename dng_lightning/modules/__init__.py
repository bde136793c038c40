"""LightningModules: what is trained, tested and predicted with."""

from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.modules.diffusion import DiffusionModule
from dng_lightning.modules.guided_sampler import GuidedSampler
from dng_lightning.modules.probe import ProbeModule

__all__ = ["ClassifierModule", "DiffusionModule", "GuidedSampler", "ProbeModule"]
