"""Dynamic Negative Guidance of diffusion models, in PyTorch Lightning.

Removes a class from the samples of a diffusion model and keeps the balance of the others, after Koulischer, Deleu,
Raya, Demeester and Ambrogioni, "Dynamic Negative Guidance of Diffusion Models", ICLR 2025 (arXiv 2410.14398).

The public names of the modules below can be imported from here; each is loaded at its first use:

    from dng_lightning import ClassConditionalPredictor, DynamicNegativeGuidance, ImageNoise, sample
"""

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"

# `modules` comes last: it imports Lightning
PUBLIC = ("guidance", "posterior", "sampling", "schedule", "kernel", "interfaces", "modules")


def __getattr__(name: str) -> Any:
    # Python calls this for `from dng_lightning import resources` too: a submodule is no public name
    is_module = importlib.util.find_spec(f"{__name__}.{name}") is not None
    for module in () if name.startswith("_") or is_module else PUBLIC:
        public = importlib.import_module(f"{__name__}.{module}")
        if name in public.__all__:
            value = globals()[name] = getattr(public, name)  # the parser of the command line looks hundreds of times
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
