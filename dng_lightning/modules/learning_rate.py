"""The learning-rate schedule of a training."""

import inspect
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from dng_lightning.errors import SettingError


def learning_rate_schedule(scheduler: LRSchedulerCallable, optimizer: Optimizer, steps: float) -> Any:
    """The schedule that ``scheduler`` makes; if its ``total_steps`` is null, it is the length of the run.

    Args:
        scheduler: makes the schedule from the optimiser.
        optimizer: the optimiser.
        steps: steps of the run, inf for no end.

    Raises:
        SettingError: the schedule needs the length of an unlimited or an empty run, or is shorter than the run.
    """
    given = getattr(scheduler, "keywords", {})  # the command line makes a functools.partial
    is_open = all(given.get(name) is None for name in ("total_steps", "epochs"))
    if is_open and "total_steps" in {*given, *inspect.signature(scheduler).parameters}:
        if not isinstance(steps, int):
            raise SettingError("the scheduler's total_steps is open and the run has no end: set trainer.max_epochs")
        if steps < 1:
            raise SettingError("the run has no step: raise trainer.max_steps, max_epochs or limit_train_batches")
        try:
            schedule = scheduler(optimizer, total_steps=steps)  # type: ignore[call-arg]
        except ZeroDivisionError:  # OneCycleLR, where pct_start * total_steps is 1
            schedule = scheduler(optimizer, total_steps=steps + 1)  # type: ignore[call-arg]
    else:
        schedule = scheduler(optimizer)
    if (planned := getattr(schedule, "total_steps", None) or steps) < steps:
        raise SettingError(
            f"the learning-rate schedule has {planned} steps and the run {steps}: set the scheduler's total_steps "
            "to null, or to as many as the run has"
        )
    peak, rate = optimizer.param_groups[0].get("max_lr"), optimizer.defaults.get("lr")
    if peak not in (None, rate):
        rank_zero_info(f"The learning rate follows the scheduler's max_lr {peak}, not the optimizer's lr {rate}.")
    return schedule
