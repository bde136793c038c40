"""A comparison of three guidances on the model `digits`, and how its tables are read."""

import csv
from pathlib import Path
from typing import Any

from torch import Tensor

from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.evaluation.runs import Samples
from dng_lightning.guidance import DynamicNegativeGuidance, NegativePrompting
from dng_lightning.modules import ClassifierModule
from dng_lightning.posterior import TrackedPosterior

N, FIRST, STEPS, FORBIDDEN = 24, 50, 10, [3, 8]
WITH_PRIOR = "{class_path: DynamicNegativeGuidance, init_args: {scale: %s, posterior: %s}}"
POSTERIOR = "{class_path: TrackedPosterior, init_args: {prior: %s}}"
FIRST_PRIOR = [WITH_PRIOR % (scale, POSTERIOR % 0.2) for scale in ("1.0", "3.0")]
GUIDANCES = f"[{{class_path: NegativePrompting, init_args: {{scale: 1.0}}}}, {', '.join(FIRST_PRIOR)}]"
PRIOR = TrackedPosterior(prior=0.2)
METHODS = [NegativePrompting(1.0), DynamicNegativeGuidance(1.0, PRIOR), DynamicNegativeGuidance(3.0, PRIOR)]
ORDER = ["Unguided", "Rejection", "NegativePrompting", *["DynamicNegativeGuidance"] * 2]
MEASURED_ANEW = ("images_per_second", "memory_mb")


def labels_of(samples: Samples) -> Tensor:
    """What the classifier calls the images as they are kept."""
    return ClassifierModule.load("digits-classifier").label(to_float(to_uint8(samples.images))).labels


def rows(folder: Path, name: str = "results") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").open(newline="")))


def compared(folder: Path, digits: int = 6) -> list[dict[str, Any]]:
    """The rows but for what is measured anew each time, numbers to so many digits."""

    def value(text: str) -> Any:
        try:
            return f"{float(text):.{digits}g}"
        except ValueError:
            return text

    return [{k: value(v) for k, v in row.items() if k not in MEASURED_ANEW} for row in rows(folder)]
