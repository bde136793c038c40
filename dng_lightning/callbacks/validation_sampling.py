"""Base class of callbacks that draw images during validation."""

from abc import ABC, abstractmethod
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class ValidationSampling(Callback, ABC):
    """Draws at the validations of every n-th epoch; subclasses implement ``draw``, and set ``every_n_epochs``."""

    every_n_epochs: int

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw once per validation: before its first batch, when the module has the weights that are validated."""
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if batch_idx or dataloader_idx or not due or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.draw(trainer, pl_module)

    @abstractmethod
    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw images and log them."""
