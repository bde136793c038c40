"""Sampling: the reverse loop, its noise, its predictors and its recorders."""

from dng_lightning.sampling.noise import ImageNoise
from dng_lightning.sampling.particles import Particles
from dng_lightning.sampling.predictor_wrappers import WithClassifier, WithObserver, WithProbe
from dng_lightning.sampling.predictors import ClassConditionalPredictor, Denoiser, NetworkPairPredictor, Predictor
from dng_lightning.sampling.recorders import PassiveTracking, Recorder, Trajectories
from dng_lightning.sampling.sampler import Sampler, sample
from dng_lightning.sampling.self_filter import SelfFilter

__all__ = [
    "ClassConditionalPredictor",
    "Denoiser",
    "ImageNoise",
    "NetworkPairPredictor",
    "Particles",
    "PassiveTracking",
    "Predictor",
    "Recorder",
    "Sampler",
    "SelfFilter",
    "Trajectories",
    "WithClassifier",
    "WithObserver",
    "WithProbe",
    "sample",
]
