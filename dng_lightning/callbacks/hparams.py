"""Fills TensorBoard's HPARAMS tab with the settings of a training and its metrics."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dng_lightning.callbacks.guided_sampling import GuidedSampling
from dng_lightning.evaluation import boards


class HParams(Callback):
    """Writes a training's settings and its last metrics when it ends.

    The command line adds this callback to every training; other loggers get only the settings.
    """

    def __init__(self) -> None:
        self.has_trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this is not a finished training that was resumed."""
        self.has_trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings and the metrics."""
        if self.has_trained and (board := boards.board_of(trainer)).loggers:
            measured = sorted(name for name in trainer.callback_metrics if name.startswith(("val/", "metrics/")))
            board.add_settings(settings(trainer, pl_module), measured)


def settings(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Settings for the comparison of trainings: network, optimiser, data, length and guidance."""
    optimizer, data = trainer.optimizers[0], trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
    batch = getattr(data, "batch", getattr(data, "batch_size", None))
    found: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "prediction": module.hparams.get("prediction"),
        "optimizer": type(optimizer).__name__,
        # the peak of a one-cycle schedule, which overwrites the optimiser's setting
        "learning_rate": optimizer.param_groups[0].get("max_lr", optimizer.defaults.get("lr")),
        "batch_size": batch and batch * trainer.world_size * trainer.accumulate_grad_batches,
        "steps": trainer.global_step,
        "precision": trainer.precision,
        "data": type(data).__name__ if data else None,
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GuidedSampling):
            found |= callback.settings(module)
    return found
