"""Diffusion models of other libraries, to sample from."""

from dng_lightning.pretrained.base import PretrainedModel
from dng_lightning.pretrained.diffusers import DiffusersModel
from dng_lightning.pretrained.edm import EDMModel
from dng_lightning.pretrained.guided_diffusion import GuidedDiffusionModel
from dng_lightning.pretrained.lucidrains import LucidrainsModel

__all__ = ["DiffusersModel", "EDMModel", "GuidedDiffusionModel", "LucidrainsModel", "PretrainedModel"]
