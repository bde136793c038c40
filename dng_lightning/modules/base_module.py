"""Base class of the trained modules: checkpoints that describe their data, and are loaded without running code."""

import contextlib
import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from dng_lightning.errors import SettingError, reason
from dng_lightning.modules.first_batch import FACTS, facts_of_a_batch
from dng_lightning.modules.learning_rate import learning_rate_schedule
from dng_lightning.modules.resuming import PLATEAU, WEIGHTS_ALONE, check_same_network, keep_settings
from dng_lightning.networks.precision import set_memory_format
from dng_lightning.storage import resources, safe_checkpoint

DIVERGED = (
    "lower the optimizer's lr or set trainer.gradient_clip_val, and resume from the last checkpoint (--ckpt_path last)"
)


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Report any failure to read a checkpoint of ``what`` as a ``SettingError``."""
    try:
        yield
    except SettingError:
        raise
    except pickle.UnpicklingError as error:
        raise SettingError(f"{path} is refused: it is no weights-only checkpoint, or carries code") from error
    except Exception as error:  # a foreign file can fail in any way
        raise SettingError(f"{path} is no checkpoint of {what}: {reason(error)}") from error


class TrainedModule(LightningModule):
    """A LightningModule whose checkpoint has the classes and the shape of its training images, and no code.

    Attributes:
        net: the network, with an attribute ``num_classes`` if it has class labels or class outputs.
        image_shape: (C, H, W) of the images.
        class_names: names of the data set's classes, by label.
        seen_classes: labels of the training images: all, unless the data were filtered.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        for_training: settings that only training uses, which ``load`` leaves out.
        name: name of a loaded checkpoint.
        folder: folder of a loaded checkpoint.
    """

    net: nn.Module
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    seen_classes: tuple[int, ...]
    optimizer: OptimizerCallable
    scheduler: LRSchedulerCallable | None
    for_training: ClassVar[tuple[str, ...]] = ()
    name: str = ""
    folder: Path

    def keep_hyperparameters(self, *objects: str) -> None:
        """Store the constructor's arguments; call it from there.

        A module of the command line stores class paths and numbers, and is rebuilt from its checkpoint. A module of
        Python code cannot store the arguments named in ``objects``: pass them again to load its checkpoint.
        """
        constructor = inspect.currentframe().f_back  # type: ignore[union-attr]  # CPython has frames
        self.save_hyperparameters(ignore=objects, frame=constructor)
        if "_instantiator" in self.hparams:  # Lightning holds the configuration instead of the objects
            self.save_hyperparameters(frame=constructor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all but the optimiser factories: those of the command line hold the trainer, processes and data."""
        memo |= {id(maker): maker for maker in (self.__dict__.get(name) for name in ("optimizer", "scheduler"))}
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def setup(self, stage: str) -> None:
        """Take shape and classes of the images from the datamodule, or from the first batch, and try the network.

        Raises:
            SettingError: the data are not labelled images in [-1, 1], or the network has other inputs or classes.
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
        set_memory_format(self.net, self.trainer.strategy.root_device, str(self.trainer.precision))
        if stage == "fit":
            self._try_network()

    def _try_network(self) -> None:
        """Run the network on a black image, so that wrong shapes are refused before the first step."""
        was_training, device = self.net.training, self.trainer.strategy.root_device
        self.net.to(device).eval()  # the trainer moves it only after all checks
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
        """Shape of the network's output for an ``image`` (1, C, H, W), and the required shape."""
        return (), ()

    def log_by_level(self, name: str, values: Tensor, t: Tensor, T: int) -> None:
        """Log the mean of each quarter of the noise levels, over all processes.

        Args:
            name: name of the metric; `/q1` (least noise) to `/q4` is appended.
            values: value of each image, (B,).
            t: noise level of each image in 1..T, (B,).
            T: number of levels.
        """
        for quarter in range(4):
            inside = (t - 1) * 4 // T == quarter
            count = int(inside.sum())
            # Lightning reduces the keys of each process in order, so all processes log all four keys, without images
            # with weight 0. It truncates the mean of the weights to an integer: the factor makes the mean an integer.
            weight = count * self.trainer.world_size
            mean = values[inside].sum() / max(count, 1)
            self.log(f"{name}/q{quarter + 1}", mean, batch_size=weight, sync_dist=True)

    def log_classification(self, stage: str, logits: Tensor, labels: Tensor, t: Tensor | None, T: int) -> None:
        """Log cross-entropy and accuracy; of noisy images also by quarter of the noise levels.

        Args:
            stage: val or test.
            logits: output of the classifier, (B, num_classes).
            labels: true classes, (B,).
            t: noise level of each image in 1..T, (B,); None for clean images.
            T: number of levels.
        """
        loss, accuracy = cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) == labels).float()
        for name, values in (("loss", loss), ("accuracy", accuracy)):
            bar = name == "accuracy"
            self.log(f"{stage}/{name}", values.mean(), batch_size=len(labels), sync_dist=True, prog_bar=bar)
            if t is not None:
                self.log_by_level(f"{stage}/{name}_t", values, t, T)

    def evaluate(self, stage: str, batch: Any, generator: Generator) -> None:
        """Log losses and metrics of a batch under ``<stage>/``.

        Args:
            stage: val or test.
            batch: batch of the datamodule.
            generator: source of all random numbers, the same for a batch in every validation.
        """
        raise NotImplementedError(f"{type(self).__name__} must define evaluate")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """See ``evaluate``."""
        self.evaluate("val", batch, self._seeded(batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """See ``evaluate``."""
        self.evaluate("test", batch, self._seeded(batch_idx))

    def _seeded(self, batch_idx: int) -> Generator:
        """A generator for each batch and process, the same in every epoch."""
        return Generator(self.device).manual_seed(batch_idx * self.trainer.world_size + self.global_rank)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and the schedule; if ``total_steps`` is null, it is the length of the run.

        Raises:
            SettingError: the optimiser refuses a setting, or the schedule needs the length of an unlimited run, or is
                shorter than the run.
        """
        try:
            optimizer = self.optimizer([weight for weight in self.parameters() if weight.requires_grad])
        except ValueError as error:
            raise SettingError(f"model.optimizer: {reason(error)}") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        steps = self.trainer.estimated_stepping_batches
        schedule = learning_rate_schedule(self.scheduler, optimizer, steps) if self.scheduler else None
        is_plateau = isinstance(schedule, ReduceLROnPlateau)
        optimizer.register_load_state_dict_pre_hook(partial(keep_settings, is_plateau))
        if schedule is None:
            return optimizer
        when: dict[str, Any] = (
            {"monitor": schedule.monitor} if isinstance(schedule, ReduceLROnPlateau) else {"interval": "step"}
        )
        named = {"scheduler": schedule, "name": "train/learning_rate", **when}  # for LearningRateMonitor
        return {"optimizer": optimizer, "lr_scheduler": named}  # type: ignore[return-value]

    def on_train_start(self) -> None:
        """Advance a resumed run's learning-rate schedule to the current step.

        The schedule in the checkpoint would silently override the length and the rates in the settings of this run.
        """
        with warnings.catch_warnings(action="ignore"):  # no optimiser step took place in this process
            for config in self.trainer.lr_scheduler_configs:
                for _ in range(0 if isinstance(config.scheduler, ReduceLROnPlateau) else self.trainer.global_step):
                    config.scheduler.step()  # type: ignore[call-arg]  # the others need no metric

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the loss at the steps that are logged.

        Raises:
            SettingError: it is not finite.
        """
        is_logged = self.trainer.global_step % max(self.trainer.log_every_n_steps, 1) == 0  # type: ignore[attr-defined]
        if is_logged and not math.isfinite(loss := float(outputs["loss"])):
            raise SettingError(f"the loss is {loss} after {self.trainer.global_step} steps: {DIVERGED}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store shape and classes of the training images.

        Raises:
            SettingError: the weights are not finite; an earlier checkpoint is intact.
        """
        if not all(bool(torch.isfinite(weight).all()) for weight in self.parameters()):
            raise SettingError(f"the weights are not finite: {DIVERGED}")
        if hasattr(self, "seen_classes"):
            checkpoint["trained_on"] = {name: list(getattr(self, name)) for name in FACTS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore shape and classes of the training images, and the state of a ``ReduceLROnPlateau``.

        Raises:
            SettingError: a training is to resume from weights alone, or from those of another network.
        """
        for name, value in checkpoint.get("trained_on", {}).items():
            setattr(self, name, tuple(value))
        if self._trainer is None:
            return
        if self.trainer.state.fn == "fit" and "optimizer_states" not in checkpoint:
            raise SettingError(WEIGHTS_ALONE)
        states = checkpoint.get("lr_schedulers", [])
        checkpoint["lr_schedulers"] = [{n: s[n] for n in PLATEAU} for s in states if s.keys() >= PLATEAU]
        check_same_network(checkpoint["state_dict"], self.state_dict())

    def start_from(self, name: str) -> None:
        """Load the weights of a checkpoint, as the start of a new training.

        Args:
            name: see ``load``.

        Raises:
            SettingError: there is no such checkpoint, or it has another network.
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
            SettingError: there is no such checkpoint, or it is truncated, carries code, or has another class.
        """
        path = resources.checkpoint(name)
        with reading(path, f"a {cls.__name__}"):
            file, without = safe_checkpoint.as_ckpt(path), dict.fromkeys(cls.for_training)
            module = cls.load_from_checkpoint(file, map_location="cpu", weights_only=True, **without)
        if not hasattr(module, "seen_classes"):
            raise SettingError(f"{path} does not say what it was trained on; train it with a dng_lightning datamodule")
        module.name, module.folder = resources.name_of(name), path.parent
        return module.eval().requires_grad_(False)
