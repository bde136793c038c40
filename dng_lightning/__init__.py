"""Dynamic Negative Guidance of diffusion models, in PyTorch Lightning.

Removes a class from what a diffusion model draws and leaves the others in balance, after Koulischer, Deleu, Raya,
Demeester and Ambrogioni, "Dynamic Negative Guidance of Diffusion Models", ICLR 2025 (arXiv 2410.14398).

The public names of the modules below can be imported from here, each when it is first used:

    from dng_lightning import ClassConditionalPredictor, DynamicNegativeGuidance, ImageNoise, sample
"""

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"

# `modules` comes last: it imports Lightning
PUBLIC = ("guidance", "posterior", "sampling", "schedule", "kernel", "interfaces", "modules")


def __getattr__(name: str) -> Any:
    # `from dng_lightning import resources` asks here first: a module of that name is no public name to look for
    is_module = importlib.util.find_spec(f"{__name__}.{name}") is not None
    for module in () if name.startswith("_") or is_module else PUBLIC:
        public = importlib.import_module(f"{__name__}.{module}")
        if name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
