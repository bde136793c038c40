"""Answers to "how likely is it that this image becomes the forbidden one?", one a file, all of one interface."""

from dng_lightning.posterior.base import Posterior
from dng_lightning.posterior.calibrated import CalibratedPosterior
from dng_lightning.posterior.classifier import ClassifierPosterior
from dng_lightning.posterior.constant import ConstantPosterior
from dng_lightning.posterior.observer import ObserverPosterior
from dng_lightning.posterior.probe import ProbePosterior
from dng_lightning.posterior.released import ReleasedPosterior
from dng_lightning.posterior.timed import TimedPosterior
from dng_lightning.posterior.tracked import TrackedPosterior

__all__ = [
    "CalibratedPosterior",
    "ClassifierPosterior",
    "ConstantPosterior",
    "ObserverPosterior",
    "Posterior",
    "ProbePosterior",
    "ReleasedPosterior",
    "TimedPosterior",
    "TrackedPosterior",
]
