"""What the modules that are trained have in common: they remember their data, and they load safely."""

import contextlib
import copy
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Generator, Tensor, nn

from dng_lightning import shipped
from dng_lightning.errors import SettingError, reason

FACTS = ("image_shape", "class_names", "seen_classes")  # of the data, which a checkpoint tells


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint of ``what`` is read into one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise SettingError(f"{path} is refused: it is no weights-only checkpoint, or carries code") from error
    except Exception as error:  # a foreign file can fail in any way
        raise SettingError(f"{path} is no checkpoint of {what}: {reason(error)}") from error


class TrainedModule(LightningModule):
    """A LightningModule whose checkpoint says what it was trained on, and needs no code to be read.

    Attributes:
        net: the network; an attribute ``num_classes`` says how many classes it is told or gives, if there is one.
        image_shape: (C, H, W) of its images.
        class_names: the data set's classes; a label is an index into them.
        seen_classes: the labels that it was trained on (all of them, unless the data were filtered).
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        for_training: what of its settings ``load`` leaves out, as training alone has a use for it.
    """

    net: nn.Module
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    seen_classes: tuple[int, ...]
    optimizer: OptimizerCallable
    scheduler: LRSchedulerCallable | None
    for_training: ClassVar[tuple[str, ...]] = ()

    def keep_hyperparameters(self, *objects: str) -> None:
        """Store the constructor's arguments; call it from there.

        A module made by the command line stores class paths and numbers and rebuilds itself from its checkpoint. In
        one made in Python the arguments named in ``objects`` are no plain data and are left out: they must be given
        again to load its checkpoint.
        """
        constructor = inspect.currentframe().f_back  # type: ignore[union-attr]  # CPython has frames
        self.save_hyperparameters(ignore=objects, frame=constructor)
        if "_instantiator" in self.hparams:  # Lightning holds the configuration in place of the objects
            self.save_hyperparameters(frame=constructor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all but what makes optimisers; made by the command line it holds the trainer, processes and data."""
        memo |= {id(maker): maker for maker in (self.__dict__.get(name) for name in ("optimizer", "scheduler"))}
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def setup(self, stage: str) -> None:
        """Take the facts about the data from the trainer's datamodule, and check that the network fits them.

        Raises:
            SettingError: the network's classes are not as many as the data's.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "seen_classes"):
            return
        for name in FACTS:
            setattr(self, name, tuple(getattr(data, name)))
        classes = getattr(self.net, "num_classes", 0)
        if classes and getattr(data, "has_captions", False):
            raise SettingError("the batches hold captions, and the network is told classes: choose no data.caption")
        if classes not in (0, len(self.class_names)):
            raise SettingError(
                f"the network has {classes} classes, the data have {len(self.class_names)}: set its num_classes"
            )

    def log_by_level(self, name: str, values: Tensor, t: Tensor, T: int) -> None:
        """Log the mean over each quarter of the noise levels; over all processes, of which each may have other levels.

        Args:
            name: what it is; `/q1` (least noise) to `/q4` is added.
            values: one an image, (B,).
            t: the images' levels (B,), in 1..T.
            T: number of levels.
        """
        for quarter in range(4):
            inside = (t - 1) * 4 // T == quarter
            count = int(inside.sum())
            # Lightning reduces the keys in the order of each process's own, so all log all four, with the weight 0
            # for none. Of the processes' weights it takes the mean, cut to a whole number: the factor makes it one.
            weight = count * self.trainer.world_size
            mean = values[inside].sum() / max(count, 1)
            self.log(f"{name}/q{quarter + 1}", mean, batch_size=weight, sync_dist=True)

    def evaluate(self, stage: str, batch: Any, generator: Generator) -> None:
        """Log losses and metrics of a batch under ``<stage>/``.

        Args:
            stage: val or test.
            batch: of the datamodule.
            generator: source of all random draws, the same for a batch in every validation.
        """
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """See ``evaluate``."""
        self.evaluate("val", batch, self._seeded(batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """See ``evaluate``."""
        self.evaluate("test", batch, self._seeded(batch_idx))

    def _seeded(self, batch_idx: int) -> Generator:
        """Other draws for each batch and process, the same in every epoch."""
        return Generator(self.device).manual_seed(batch_idx * self.trainer.world_size + self.global_rank)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The injected optimiser and schedule; a schedule whose ``total_steps`` is open gets the length of the run.

        Raises:
            SettingError: the schedule needs the length of a run that has none, or cannot use it.
        """
        optimizer = self.optimizer([weight for weight in self.parameters() if weight.requires_grad])
        if self.scheduler is None:
            return optimizer
        given = getattr(self.scheduler, "keywords", {})  # the command line makes a functools.partial
        is_open = all(given.get(name) is None for name in ("total_steps", "epochs"))
        if is_open and "total_steps" in {*given, *inspect.signature(self.scheduler).parameters}:
            steps = self.trainer.estimated_stepping_batches
            if not isinstance(steps, int):
                raise SettingError("the scheduler's total_steps is open and the run has no end: set trainer.max_epochs")
            try:
                schedule = self.scheduler(optimizer, total_steps=steps)  # type: ignore[call-arg]
            except ZeroDivisionError as error:  # OneCycleLR, where pct_start * total_steps is 1
                raise SettingError(f"the scheduler cannot warm up in {steps} steps: choose another length") from error
        else:
            schedule = self.scheduler(optimizer)
        if isinstance(schedule, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": schedule.monitor}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Refuse a run that outlives its schedule: a resumed checkpoint brings the length of its own along.

        Raises:
            SettingError: the schedule is shorter than the run.
        """
        run = self.trainer.estimated_stepping_batches
        for config in self.trainer.lr_scheduler_configs:
            if (planned := getattr(config.scheduler, "total_steps", None) or run) < run:
                raise SettingError(
                    f"the learning-rate schedule has {planned} steps and the run {run}: resume with the "
                    "trainer.max_epochs of the first run, or give the scheduler a total_steps as long as the run"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the facts about the data."""
        if hasattr(self, "seen_classes"):
            checkpoint["trained_on"] = {name: list(getattr(self, name)) for name in FACTS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the facts about the data."""
        for name, value in checkpoint.get("trained_on", {}).items():
            setattr(self, name, tuple(value))

    @classmethod
    def load(cls, name: str) -> Self:
        """Load a checkpoint for use: weights only, on the CPU, in evaluation mode, without gradients.

        Args:
            name: a ``.ckpt`` file, a folder with a ``model.ckpt``, or the name of a shipped checkpoint.

        Raises:
            SettingError: there is none, or it is truncated, carries code, or is not a checkpoint of this class.
        """
        path = shipped.checkpoint(name)
        with reading(path, f"a {cls.__name__}"):
            without = dict.fromkeys(cls.for_training)
            module = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True, **without)
        if not hasattr(module, "seen_classes"):
            raise SettingError(f"{path} does not say what it was trained on; train it with a dng_lightning datamodule")
        return module.eval().requires_grad_(False)
