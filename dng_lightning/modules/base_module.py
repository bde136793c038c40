"""Base class of the trained modules: they store facts about their data and load without running code."""

import contextlib
import copy
import inspect
import pickle
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from dng_lightning.errors import SettingError, reason
from dng_lightning.modules.first_batch import FACTS, facts_of_a_batch
from dng_lightning.modules.resuming import PLATEAU, check_same_network, keep_settings
from dng_lightning.storage import resources, safe_checkpoint


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
        net: the network; an attribute ``num_classes`` says the number of its class labels or outputs, if it has any.
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
        """Take the facts about the data from the datamodule, or from the first batch, and try the network on them.

        Raises:
            SettingError: the data are no labelled images in [-1, 1], or the network does not take them, or tells other
                classes apart.
        """
        data = getattr(self.trainer, "datamodule", None)
        facts = {name: tuple(getattr(data, name)) for name in FACTS if hasattr(data, name)}
        if stage == "fit" and len(facts) < len(FACTS):
            self.trainer.fit_loop.setup_data()
            found = facts_of_a_batch(self.trainer.train_dataloader, data or self, getattr(self.net, "num_classes", 0))
            facts = found | facts
        for name, value in facts.items():
            setattr(self, name, value)
        classes = getattr(self.net, "num_classes", 0)
        if classes and getattr(data, "has_captions", False):
            raise SettingError("the batches hold captions, and the network takes classes: choose no data.caption")
        if "class_names" in facts and classes not in (0, len(self.class_names)):
            raise SettingError(
                f"the network has {classes} classes, the data have {len(self.class_names)}: set its num_classes"
            )
        if stage == "fit":
            self._try_network()

    def _try_network(self) -> None:
        """Show the network an image, so that one for others is refused before the first step."""
        was_training, device = self.net.training, self.trainer.strategy.root_device
        self.net.to(device).eval()  # the trainer would move it, but only after all checks
        image = self.trainer.precision_plugin.convert_input(torch.zeros(1, *self.image_shape, device=device))
        try:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                found, expected = self.output_shape(image)
        except SettingError:
            raise
        except Exception as error:  # a network can fail in any way
            shape = tuple(self.image_shape)
            raise SettingError(f"model.net does not take the data's images {shape}: {reason(error)}") from error
        if found != expected:
            raise SettingError(
                f"model.net gives {tuple(found)} for an image of the data; it must give {tuple(expected)}"
            )
        self.net.train(was_training)

    def output_shape(self, image: Tensor) -> tuple[Sequence[int], Sequence[int]]:
        """The shape of the network's output for an ``image`` (1, C, H, W), and the shape that it must have."""
        return (), ()

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
            SettingError: the schedule needs the length of a run that has none, cannot use it, or is shorter.
        """
        optimizer = self.optimizer([weight for weight in self.parameters() if weight.requires_grad])
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        schedule = self._schedule(optimizer) if self.scheduler else None
        is_plateau = isinstance(schedule, ReduceLROnPlateau)
        optimizer.register_load_state_dict_pre_hook(partial(keep_settings, is_plateau))
        if schedule is None:
            return optimizer
        when: dict[str, Any] = (
            {"monitor": schedule.monitor} if isinstance(schedule, ReduceLROnPlateau) else {"interval": "step"}
        )
        named = {"scheduler": schedule, "name": "train/learning_rate", **when}  # for LearningRateMonitor
        return {"optimizer": optimizer, "lr_scheduler": named}  # type: ignore[return-value]

    def _schedule(self, optimizer: Optimizer) -> Any:
        assert self.scheduler
        steps = self.trainer.estimated_stepping_batches
        given = getattr(self.scheduler, "keywords", {})  # the command line makes a functools.partial
        is_open = all(given.get(name) is None for name in ("total_steps", "epochs"))
        if is_open and "total_steps" in {*given, *inspect.signature(self.scheduler).parameters}:
            if not isinstance(steps, int):
                raise SettingError("the scheduler's total_steps is open and the run has no end: set trainer.max_epochs")
            try:
                schedule = self.scheduler(optimizer, total_steps=steps)  # type: ignore[call-arg]
            except ZeroDivisionError:  # OneCycleLR, where pct_start * total_steps is 1
                schedule = self.scheduler(optimizer, total_steps=steps + 1)  # type: ignore[call-arg]
        else:
            schedule = self.scheduler(optimizer)
        if (planned := getattr(schedule, "total_steps", None) or steps) < steps:
            raise SettingError(
                f"the learning-rate schedule has {planned} steps and the run {steps}: set the scheduler's total_steps "
                "to null, or to as many as the run has"
            )
        peak, rate = optimizer.param_groups[0].get("max_lr"), optimizer.defaults.get("lr")
        if peak not in (None, rate):
            rank_zero_info(f"The learning rate follows the scheduler's max_lr {peak}, not the optimizer's lr {rate}.")
        return schedule

    def on_train_start(self) -> None:
        """Bring a resumed run's learning-rate schedule to where the run is, as if the run had always had it.

        A checkpoint would bring the length and the rates of the schedule that it was trained with, and overrule the
        settings of this run in silence.
        """
        with warnings.catch_warnings(action="ignore"):  # there was no optimiser step in this process
            for config in self.trainer.lr_scheduler_configs:
                for _ in range(0 if isinstance(config.scheduler, ReduceLROnPlateau) else self.trainer.global_step):
                    config.scheduler.step()  # type: ignore[call-arg]  # the others need no metric

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the facts about the data."""
        if hasattr(self, "seen_classes"):
            checkpoint["trained_on"] = {name: list(getattr(self, name)) for name in FACTS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the facts about the data, and of a learning-rate schedule what its settings do not say.

        Raises:
            SettingError: a trainer is to go on from weights alone, or from those of another network.
        """
        for name, value in checkpoint.get("trained_on", {}).items():
            setattr(self, name, tuple(value))
        if self._trainer is None:
            return
        if self.trainer.state.fn == "fit" and "optimizer_states" not in checkpoint:
            raise SettingError("the checkpoint holds weights alone: start a new run from them with --weights")
        states = checkpoint.get("lr_schedulers", [])
        checkpoint["lr_schedulers"] = [{n: s[n] for n in PLATEAU} for s in states if s.keys() >= PLATEAU]
        check_same_network(checkpoint["state_dict"], self.state_dict())

    def start_from(self, name: str) -> None:
        """Take over the weights of a checkpoint, to train them anew.

        Args:
            name: as for ``load``.

        Raises:
            SettingError: there is no such checkpoint, or it is of another network.
        """
        path = resources.checkpoint(name)
        with reading(path, f"this {type(self).__name__}"):
            self.load_state_dict(safe_checkpoint.read(path)["state_dict"])

    @classmethod
    def load(cls, name: str) -> Self:
        """Load a checkpoint for use: weights only, on the CPU, in evaluation mode, without gradients.

        Args:
            name: a ``.ckpt`` or ``.safetensors`` file, a folder with one, the name of a shipped checkpoint, or
                ``hf:owner/model``.

        Raises:
            SettingError: there is none, or it is truncated, carries code, or is not a checkpoint of this class.
        """
        path = resources.checkpoint(name)
        with reading(path, f"a {cls.__name__}"):
            file, without = safe_checkpoint.as_ckpt(path), dict.fromkeys(cls.for_training)
            module = cls.load_from_checkpoint(file, map_location="cpu", weights_only=True, **without)
        if not hasattr(module, "seen_classes"):
            raise SettingError(f"{path} does not say what it was trained on; train it with a dng_lightning datamodule")
        return module.eval().requires_grad_(False)
