"""What a run depends on besides its settings and its inputs: versions, commit, seed, device."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from dng_lightning import __version__
from dng_lightning.storage.resources import PACKAGE

LIBRARIES = "torch", "torchvision", "lightning", "numpy", "diffusers", "transformers", "timm", "onnxruntime"


def describe(trainer: Trainer, seed: Any) -> dict[str, Any]:
    """Versions of the imported libraries, the commit of a checkout of this package, ``seed``, device and processes."""
    device = trainer.strategy.root_device
    is_cuda = device.type == "cuda"
    versions = {name: sys.modules[name].__version__ for name in LIBRARIES if name in sys.modules}
    return {
        "versions": {"dng_lightning": __version__, "python": platform.python_version(), **versions},
        "commit": _commit(PACKAGE.parent),
        "seed_everything": seed,
        "device": torch.cuda.get_device_name(device) if is_cuda else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "processes": trainer.world_size,
    }


def _commit(folder: Path) -> str | None:
    """The commit of a git checkout, ``-dirty`` with uncommitted changes; None outside of one, or without git."""
    if not (folder / ".git").exists():
        return None
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
