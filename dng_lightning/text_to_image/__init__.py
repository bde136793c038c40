"""The same guidances on diffusers' latent text-to-image models (extra ``text-to-image``).

Names are imported when they are first used: ``guided`` needs neither Lightning nor torchvision.
"""

import importlib
from typing import Any

PUBLIC = {
    "ClassifierObserver": "observers",
    "FlowMatchAncestralScheduler": "flow_match_ancestral",
    "PipelineSampler": "pipeline_sampler",
    "PromptObserver": "observers",
    "Prompts": "prompts",
    "TextPredictor": "predictor",
    "TextToImageModel": "model",
    "TextToImageSampler": "sampler",
    "VisionLanguageObserver": "vision_language",
    "guided": "pipelines",
}

__all__ = list(PUBLIC)  # names are fetched by __getattr__


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)
