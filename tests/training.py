"""A quiet trainer, and batches of random images, in tests."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def trainer(folder: Path, **settings: object) -> Trainer:
    """A trainer on the CPU without logger, checkpoints and progress bar."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"default_root_dir": folder, "enable_checkpointing": False, **quiet, **settings}
    return Trainer(**settings)  # type: ignore[arg-type]


def images(count: int) -> tuple[Tensor, Tensor]:
    """Random images (count, 1, 8, 8) in [-1, 1], and labels."""
    return torch.rand(count, 1, 8, 8) * 2 - 1, torch.arange(count) % 10
