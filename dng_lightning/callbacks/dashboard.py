"""Makes TensorBoard's tabs of custom scalars and of hyper-parameters readable."""

import os
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from dng_lightning.callbacks.guided_sampling import GuidedSampling
from dng_lightning.evaluation import tensorboard
from dng_lightning.modules.diffusion import BaseDiffusionModule


class Dashboard(Callback):
    """Arranges the charts of a training when it starts, and fills the HPARAMS tab when it ends.

    The command line adds it to every training; it does nothing without a ``TensorBoardLogger``.
    """

    def __init__(self) -> None:
        self.has_trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the custom scalars."""
        self.has_trained = True
        if writer := tensorboard.writer_of(trainer):
            writer.add_custom_scalars(charts(trainer, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the run's settings beside what was last measured, unless a finished training was resumed."""
        if self.has_trained and (writer := tensorboard.writer_of(trainer)):
            measured = sorted(name for name in trainer.callback_metrics if name.startswith(("val/", "metrics/")))
            tensorboard.hyperparameters(writer, settings(trainer, pl_module), measured)


def charts(trainer: Trainer, module: LightningModule) -> tensorboard.Layout:
    """The charts of a training: those of the module, and those of its callbacks."""
    training = {"Loss": tensorboard.lines("train/loss", "val/loss")}
    if isinstance(module, BaseDiffusionModule):
        quarters = tensorboard.lines(*(f"val/loss_t/q{quarter}" for quarter in (1, 2, 3, 4)))
        training["Loss by noise level, q1 the least noise"] = quarters
    else:
        training["Accuracy"] = tensorboard.lines("val/accuracy")
    found = {"Training": training}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LearningRateMonitor):
            training["Learning rate"] = tensorboard.lines("lr-*")
        elif isinstance(callback, GuidedSampling):
            found |= callback.charts()
    return found


def settings(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What a run was made with, under short names: of the module, the optimiser, the data and the guidance."""
    found: dict[str, Any] = {
        name: value
        for name, value in module.hparams.items()
        if isinstance(value, str | int | float | dict) and name not in ("_instantiator", "optimizer", "scheduler")
    }
    (optimizer, *_), schedules = trainer.optimizers, trainer.lr_scheduler_configs
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
    batch = getattr(data, "batch_size", None)
    found |= {
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "optimizer": type(optimizer).__name__,
        # of a one-cycle schedule the peak; what the optimiser was given is overwritten by it
        "learning_rate": optimizer.param_groups[0].get("max_lr", optimizer.defaults.get("lr")),
        "weight_decay": optimizer.defaults.get("weight_decay"),
        "scheduler": type(schedules[0].scheduler).__name__ if schedules else "constant",
        "data": type(data).__name__ if data else None,
        "data.classes": len(getattr(data, "seen_classes", [])) or None,
        "batch_size": batch and batch * trainer.world_size * trainer.accumulate_grad_batches,
        "steps": trainer.global_step,
        "precision": trainer.precision,
        "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GuidedSampling):
            found |= callback.settings(module)
    return found
