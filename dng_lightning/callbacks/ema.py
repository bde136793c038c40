"""Exponential moving average (EMA) of the weights, used for validation, sampling and export."""

from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from dng_lightning.errors import SettingError, check_in


class EMA(WeightAveraging):
    """Averages the weights at each optimiser step, with a decay that warms up.

    The first update copies the weights, and the decay of update n = 1, 2, ... is min(decay, (1 + n) / (10 + n)), so
    that the random initial weights have little effect even in a short training. Validation runs on the average,
    checkpoints hold it as ``state_dict``, and it becomes the module's weights when training ends.

    Args:
        decay: the decay after warm-up, in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        check_in("[0, 1)", decay=decay)
        super().__init__(use_buffers=False, multi_avg_fn=partial(_average, decay))
        self._validating = False  # the module holds the average, and the average model the current weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module.

        Raises:
            SettingError: the precision is 16-true, whose weights torch does not average with fp32.
        """
        if stage == "fit" and trainer.precision == "16-true":
            raise SettingError("EMA averages no weights of trainer.precision 16-true: take 16-mixed or bf16-true")
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average, which is a copy of the weights before the first step."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._validating = self._average_model is not None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the current weights for training."""
        if self._validating:
            super().on_validation_epoch_end(trainer, pl_module)
            self._validating = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the current weights if a validation is interrupted, before a checkpoint is saved."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as the weights, and the current weights for resuming."""
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average and the current weights when training resumes."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _average(decay: float, averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
    """Update the averages, which keep their precision, fp32 even if the trainer's is lower (``bf16-true``)."""
    n = int(count)
    alike = [weight.to(average.dtype) for average, weight in zip(averages, weights, strict=True)]
    torch._foreach_lerp_(averages, alike, 1 - min(decay, (1 + n) / (10 + n)))
