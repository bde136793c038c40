"""All guidances for text-to-image models of diffusers (extra ``text-to-image``).

Each name is imported at its first use: ``guided`` needs neither Lightning nor torchvision.
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

__all__ = list(PUBLIC)  # __getattr__ imports them


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)
