"""Makes TensorBoard's tabs of custom scalars and of hyper-parameters readable."""

import json
import os
from collections.abc import Iterator
from typing import Any, TypeVar

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from dng_lightning.callbacks.guided_sampling import GuidedSampling
from dng_lightning.evaluation import board
from dng_lightning.guidance.serialization import display_name, non_default_settings, settings_json
from dng_lightning.modules.denoising import DenoisingModule
from dng_lightning.modules.diffusion import DiffusionModule

Kind = TypeVar("Kind", bound=Callback)


class Dashboard(Callback):
    """Arranges the charts of a training when it starts, and fills the HPARAMS tab when it ends.

    The command line adds it to every training; it does nothing without a ``TensorBoardLogger``.
    """

    def __init__(self) -> None:
        self.has_trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the custom scalars."""
        self.has_trained = True
        if writer := board.board_of(trainer):
            writer.add_custom_scalars(layout(trainer, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the run's settings beside what was last measured, unless a finished training was resumed."""
        if self.has_trained and (writer := board.board_of(trainer)):
            measured = [name for name in trainer.callback_metrics if name.startswith(("val/", "metrics/"))]
            board.hyperparameters(writer, dict(settings(trainer, pl_module)), sorted(measured))


def layout(trainer: Trainer, module: LightningModule) -> board.Layout:
    """The charts of a training: those of the module, and those of a ``GuidedSampling`` callback."""
    training = {"Loss": board.lines("train/loss", "val/loss")}
    if isinstance(module, DenoisingModule):
        quarters = [f"val/loss_t/q{quarter}" for quarter in (1, 2, 3, 4)]
        training["Loss by noise level, q1 the least noise"] = board.lines(*quarters)
    else:
        training["Accuracy"] = board.lines("val/accuracy")
    if _find(trainer, LearningRateMonitor):
        training["Learning rate"] = board.lines("lr-*")
    sampling = _find(trainer, GuidedSampling)
    return {"Training": training} | (sampling.charts() if sampling else {})


def settings(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Any]]:
    """What a run was made with, flat, under short names: of the module, the optimiser, the data and the guidance."""
    for name, value in module.hparams.items():
        if isinstance(value, dict) and "class_path" in value and name not in ("optimizer", "scheduler"):
            yield name, value["class_path"].rsplit(".", 1)[-1]
            yield from ((f"{name}.{key}", inner) for key, inner in value.get("init_args", {}).items())
        elif isinstance(value, str | int | float) and not name.startswith("_"):
            yield name, value
    yield "parameters", sum(weight.numel() for weight in module.parameters())
    (optimizer, *_), schedules = trainer.optimizers, trainer.lr_scheduler_configs
    yield "optimizer", type(optimizer).__name__
    # of a one-cycle schedule the peak; what the optimiser was given is overwritten by it
    yield "learning_rate", optimizer.param_groups[0].get("max_lr", optimizer.defaults.get("lr"))
    yield "weight_decay", optimizer.defaults.get("weight_decay")
    yield "scheduler", type(schedules[0].scheduler).__name__ if schedules else "constant"
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
    if data is not None:
        yield "data", type(data).__name__
        yield "data.classes", len(getattr(data, "seen_classes", [])) or None
        batch = getattr(data, "batch_size", None)
        yield "batch_size", batch and batch * trainer.world_size * trainer.accumulate_grad_batches
    yield "steps", trainer.global_step
    yield "precision", trainer.precision
    yield "seed", int(os.environ.get("PL_GLOBAL_SEED", 0))
    sampling = _find(trainer, GuidedSampling)
    if sampling and sampling.labels:
        assert isinstance(module, DiffusionModule)
        yield "forbidden", ", ".join(module.class_names[label] for label in sampling.labels)
        yield "guidance", display_name(sampling.guidance)
        yield "guidance.steps", sampling.sampler.steps
        own = json.loads(non_default_settings(settings_json(sampling.guidance)))
        yield from ((f"guidance.{name}", value) for name, value in own.items() if name != "class")


def _find(trainer: Trainer, kind: type[Kind]) -> Kind | None:
    found = (callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
    return next(found, None)
