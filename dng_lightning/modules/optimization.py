"""From the optimizer and scheduler named in a config to what `configure_optimizers` returns; a schedule of our own."""

import inspect
from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dng_lightning.errors import SettingError, check_0_to_1


class WarmupStableDecay(LambdaLR):
    """A linear warm-up, the optimizer's own rate, and a linear decay to nothing (Hu et al., 2024, section 4.2).

    Before the decay the rate does not depend on the length: a run that was stopped there can be made longer by a larger
    `trainer.max_steps`, and is then what it would have been from the start.

    Args:
        optimizer: what is scheduled.
        total_steps: length of the run; None for that of the trainer.
        warmup: number of steps before the full rate, >= 0.
        decay: share of the run that decays, in [0, 1].

    Raises:
        SettingError: a setting is out of its range, or there is no trainer to tell the length.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, warmup: int = 0, decay: float = 0.2
    ) -> None:
        check_0_to_1(decay=decay)
        if warmup < 0:
            raise SettingError(f"warmup must be at least 0; got {warmup}")
        if total_steps is None:
            raise SettingError("without a trainer the schedule's total_steps must be given")
        falling = decay * total_steps

        def factor(step: int) -> float:
            left = (total_steps - step) / falling if falling else 1.0
            return max(0.0, min(1.0, (step + 1) / (warmup + 1), left))

        super().__init__(optimizer, factor)


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
