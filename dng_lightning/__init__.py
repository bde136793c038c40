"""Dynamic Negative Guidance of diffusion models, in PyTorch Lightning.

Removes a class from what a diffusion model draws and leaves the others in balance, after Koulischer, Deleu, Raya,
Demeester and Ambrogioni, "Dynamic Negative Guidance of Diffusion Models", ICLR 2025 (arXiv 2410.14398).

    from dng_lightning import DynamicNegativeGuidance, ImageNoise, ClassConditionalPredictor, sample

The public names below are imported when they are first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "guidance": [
        "AdaptiveNegative",
        "AdaptiveProjectedGuidance",
        "CFGNegativePrompt",
        "CFGPlusPlus",
        "ClassifierFreeGuidance",
        "ClassifierGuidance",
        "ComposableNot",
        "ContrastiveCFG",
        "DynamicGeoGuide",
        "DynamicNegativeGuidance",
        "DynamicSafeDenoiser",
        "FeedbackGuidance",
        "GeoGuide",
        "Guidance",
        "LimitedInterval",
        "NegativePrompting",
        "NormalizedAttention",
        "PerpNeg",
        "PositiveAndNegative",
        "SafeDenoiser",
        "SafeLatentDiffusion",
        "SafetyGuidedFlow",
        "ShieldedDiffusion",
        "SignedNegative",
        "Unguided",
    ],
    "interfaces": ["Guided", "Needs", "Predictions", "Step"],
    "modules": ["ClassifierModule", "DiffusionModule", "GuidedSampler"],
    "posterior": [
        "CalibratedPosterior",
        "ClassifierPosterior",
        "ConstantPosterior",
        "ObserverPosterior",
        "Posterior",
        "ReleasedPosterior",
        "Timing",
        "TrackedPosterior",
    ],
    "sampling": [
        "ClassConditionalPredictor",
        "ImageNoise",
        "NetworkPairPredictor",
        "PassiveTracking",
        "Predictor",
        "Recorder",
        "Sampler",
        "Trajectories",
        "WithClassifier",
        "WithObserver",
        "sample",
    ],
    "schedule": [
        "CosineSchedule",
        "KarrasSchedule",
        "Kernel",
        "LinearSchedule",
        "NoiseLevel",
        "NoiseSchedule",
        "RectifiedFlowSchedule",
    ],
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
