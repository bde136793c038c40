"""From the optimizer and scheduler named in a config to what `configure_optimizers` returns."""

import inspect
from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from dng_lightning.errors import SettingError


def configure(
    module: LightningModule, optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None
) -> OptimizerLRScheduler:
    """Build the optimizer over the module's trainable parameters, and a scheduler that is stepped once per step.

    A scheduler whose `total_steps` is left open, such as `torch.optim.lr_scheduler.OneCycleLR` with nothing but
    `max_lr`, gets the number of optimizer steps of this run. `ReduceLROnPlateau` is stepped once per epoch.

    Args:
        module: attached to a trainer that knows how long it will run.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> scheduler, or None for a constant learning rate.

    Raises:
        SettingError: the scheduler needs the length of a run that has none, or has one that it cannot use.
    """
    built = optimizer([parameter for parameter in module.parameters() if parameter.requires_grad])
    if scheduler is None:
        return built
    if not _leaves_total_steps_open(scheduler):
        schedule = scheduler(built)
    else:
        steps = module.trainer.estimated_stepping_batches
        if not isinstance(steps, int):
            raise SettingError("the scheduler's total_steps is open and the run has no end: set trainer.max_epochs.")
        try:
            schedule = cast(Callable[..., Any], scheduler)(built, total_steps=steps)
        except ZeroDivisionError as error:  # OneCycleLR, where pct_start * total_steps is 1
            raise SettingError(
                f"the scheduler cannot warm up in a run of {steps} steps: choose another length"
            ) from error
    if isinstance(schedule, ReduceLROnPlateau):
        return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "monitor": schedule.monitor}}
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_schedule(module: LightningModule) -> None:
    """Refuse, before the first step, a run that outlives its learning-rate schedule; call from `on_train_start`.

    A resumed checkpoint brings the length of its own schedule along, and torch would stop with a traceback where that
    ends.

    Args:
        module: attached to a trainer whose optimizers are set up.

    Raises:
        SettingError: the schedule is shorter than the run.
    """
    wanted = module.trainer.estimated_stepping_batches
    for config in module.trainer.lr_scheduler_configs:
        planned = getattr(config.scheduler, "total_steps", None)
        if planned is not None and planned < wanted:
            raise SettingError(
                f"the learning-rate schedule has {planned} steps and the run {wanted}: resume with the "
                "trainer.max_epochs of the first run, or give the scheduler a total_steps as long as the run."
            )


def _leaves_total_steps_open(scheduler: LRSchedulerCallable) -> bool:
    # What the command line builds is a functools.partial that holds every argument; in Python it may be a class.
    given: dict[str, Any] = getattr(scheduler, "keywords", {})
    if given.get("total_steps") is not None or given.get("epochs") is not None:
        return False
    return "total_steps" in given or "total_steps" in inspect.signature(scheduler).parameters
