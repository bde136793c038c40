"""What `dng predict` wrote."""

from pathlib import Path

import torch
from torch import Tensor

from dng_lightning.data.pixels import from_png
from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    NegativePrompting,
    Unguided,
)

METHODS = [Unguided(), NegativePrompting(scale=20.0), DynamicNegativeGuidance(scale=20.0)]

# The greatest difference between the pixels of one image drawn in two batches. The draws are the same bit for bit, but
# a network's sums are grouped differently in batches of different sizes, and guidance multiplies the difference.
# Measured on the CPU in 100 steps, one batch against batches of 7 and of 1, four methods, in units of [-1, 1]:
# 6e-5 for 64 images of `digits` and 2e-4 for 14 of `mnist`; at most one pixel of each 4,096 and 10,976 changed, by one
# grey level: it lay on the border. The tiny model and the few steps here give 1e-6.
GREY_LEVELS = 1
DIFFERENCE = 1e-4


def pixels(folder: Path, seeds: list[int]) -> Tensor:
    return torch.stack([from_png(folder / f"{seed:08d}.png") for seed in seeds])


def grey_levels(one: Tensor, other: Tensor) -> int:
    """The greatest difference."""
    return int((one.int() - other.int()).abs().max())


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file is behind each image and record, and when it was written."""
    found = [*folder.rglob("0*.png"), *folder.rglob("*.json")]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}
