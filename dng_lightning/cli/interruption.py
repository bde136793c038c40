"""Ctrl-C and SIGTERM end a command so that it can be continued."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from dng_lightning.errors import SettingError

SIGNALS = signal.SIGINT, signal.SIGTERM
LONGEST = 300  # seconds from a signal to the end of a process, whatever blocks it


class Interrupted(SystemExit):
    """A signal ended the command; the exit code is 128 + its number, as shells and SLURM expect."""


class Interruption(Callback):
    """Ends a command at the first Ctrl-C or SIGTERM so that it can be continued, and at once at the second Ctrl-C.

    A training ends after the current step, at the same step on all processes, and writes ``last.ckpt``; a single
    process also ends between the batches of a validation. Everything else ends immediately, as files are written
    atomically. Place the callback last, so that the others have finished the step.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_training = False
        self.parent = os.getppid()

    @contextlib.contextmanager
    def listening(self, trainer: Trainer) -> Iterator[None]:
        """Handle the signals; when one has ended the block, wait for the processes that this one has started."""
        if threading.current_thread() is not threading.main_thread():  # the only one that can handle signals
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen(trainer)
        try:
            yield
        except Interrupted:
            if _is_started_by_another(trainer):
                raise SystemExit(0) from None  # else Lightning kills the process that started this one
            for process in getattr(trainer.strategy.launcher, "procs", []):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LONGEST)
            raise
        finally:
            signal.alarm(0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self, trainer: Trainer, pl_module: LightningModule | None = None) -> None:
        """Handle the signals from now on, instead of Lightning, whose handlers wait for other processes."""
        process = os.getpid()

        def handle(number: int, _: object) -> None:
            if os.getpid() != process:  # in a worker of a data loader, which ends with this process
                return
            # The system ends the process without Python's help at a second Ctrl-C, and if anything blocks
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, lambda *_: None)
            signal.alarm(LONGEST)
            self.received = number
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)
            if not self.is_training:
                raise Interrupted(128 + number)
            if trainer.is_global_zero:
                os.write(2, b"\nending after this step; Ctrl-C ends at once\n")  # print may have been interrupted

        if self.received is None and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, handle)

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = listen

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on there are weights to save."""
        self.listen(trainer)
        self.is_training = True

    def on_predict_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """End if the process that started this one is gone; a training and a test find out by their exchange.

        Raises:
            SettingError: it is.
        """
        if _is_started_by_another(trainer) and os.getppid() != self.parent:
            raise SettingError("another process of this run has ended: run the same command again")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End if a process has received a signal."""
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            raise Interrupted(128 + (self.received or signal.SIGTERM))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End a single process; of several, each may have a different number of batches."""
        if self.received is not None and trainer.world_size == 1:
            raise Interrupted(128 + self.received)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on the weights are saved."""
        self.is_training = False
        self.on_train_batch_end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a training that a signal has ended, on all processes together."""
        keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, ModelCheckpoint)]
        if not (isinstance(exception, Interrupted) and self.is_training and keepers):
            return
        signal.alarm(LONGEST)  # anew
        path = keepers[0].last_model_path or str(Path(str(keepers[0].dirpath), "last.ckpt"))
        keepers[0].last_model_path = path  # replaced by the next one of the resumed training
        trainer.save_checkpoint(path, weights_only=False)


def _is_started_by_another(trainer: Trainer) -> bool:
    """Whether Lightning has started this process, from the first one of the node."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and environment.local_rank() != 0
