"""Ctrl-C and SIGTERM end a command so that it can be continued."""

import contextlib
import faulthandler
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

SIGNALS = signal.SIGINT, signal.SIGTERM
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # the latter on Windows
LONGEST = 300  # seconds from a signal to the end of a process, whatever blocks it
EVERY = 1.0  # seconds of training between the exchanges of several processes
WATCH = 5.0  # seconds between looks for the process that started this one


class Interrupted(SystemExit):
    """A signal ended the command; the exit code is 128 + its number, as shells and SLURM expect."""


class Interruption(Callback):
    """Ends a command at the first Ctrl-C or SIGTERM so that it can be continued, and at once at the second Ctrl-C.

    A training ends after the current step, at the same step on all processes, and writes ``last.ckpt``; a single
    process also ends between the batches of a validation. Everything else ends immediately, as files are written
    atomically. Place the callback last, so that the others have finished the step.
    """

    def __init__(self) -> None:
        self.received = 0
        self.is_training = False
        self.parent = os.getppid()
        self.exchanged, self.batches, self.interval = time.monotonic(), 0, 1  # of the exchanges: when, since, between

    @contextlib.contextmanager
    def listening(self, trainer: Trainer) -> Iterator[None]:
        """Handle the signals; when one has ended the block, wait for the processes that this one has started."""
        if threading.current_thread() is not threading.main_thread():  # the only one that can handle signals
            yield
            return
        before, ended = {number: signal.getsignal(number) for number in SIGNALS}, threading.Event()
        self.listen(trainer)
        if is_started := _is_started_by_another(trainer):
            threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
        try:
            yield
        except Interrupted:
            if is_started:
                raise SystemExit(0) from None  # else Lightning kills the process that started this one
            for process in getattr(trainer.strategy.launcher, "procs", []):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LONGEST)
            raise
        except BaseException:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(KILL)  # else they wait for this process
            raise
        finally:
            ended.set()
            faulthandler.cancel_dump_traceback_later()
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
            _end_within(LONGEST)
            self.received = number
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)
            if not self.is_training:
                raise Interrupted(128 + number)
            if trainer.is_global_zero:
                os.write(2, b"\nending after this step; Ctrl-C ends at once\n")  # print may have been interrupted

        if not self.received and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, handle)

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = listen

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on there are weights to save."""
        self.listen(trainer)
        self.is_training = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End if a process has received a signal; several processes exchange that about once a second."""
        self.batches += 1
        if self.received if trainer.world_size == 1 else self.batches >= self.interval:  # a GPU waits for an exchange
            self._end_if_received(trainer)

    def _end_if_received(self, trainer: Trainer) -> None:
        """End if any process has received a signal, and choose the number of batches to the next exchange."""
        now = time.monotonic()
        own = [self.received, (now - self.exchanged) / max(self.batches, 1)]
        shared = trainer.strategy.reduce(torch.tensor(own, device=trainer.strategy.root_device), reduce_op="max")
        number, seconds = shared.tolist()  # of all processes, which therefore choose alike
        self.exchanged, self.batches, self.interval = now, 0, max(1, int(EVERY / max(seconds, 0.001)))
        if number:
            raise Interrupted(128 + int(number))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End a single process; of several, each may have a different number of batches."""
        if self.received and trainer.world_size == 1:
            raise Interrupted(128 + self.received)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on the weights are saved."""
        self.is_training = False
        self._end_if_received(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a training that a signal has ended, on all processes together."""
        keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, ModelCheckpoint)]
        if not (isinstance(exception, Interrupted) and self.is_training and keepers):
            return
        _end_within(LONGEST)  # anew
        path = keepers[0].last_model_path or str(Path(str(keepers[0].dirpath), "last.ckpt"))
        keepers[0].last_model_path = path  # replaced by the next one of the resumed training
        trainer.save_checkpoint(path, weights_only=False)

    def _watch(self, ended: threading.Event) -> None:
        """End this process if the one that started it is gone, whatever this one waits for."""
        while not ended.wait(WATCH):
            if os.getppid() != self.parent:
                os.write(2, b"dng: error: another process of this run has ended: run the same command again\n")
                os._exit(2)


def _end_within(seconds: float) -> None:
    """Let the system end this process without Python's help, printing where it hangs."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def _is_started_by_another(trainer: Trainer) -> bool:
    """Whether Lightning has started this process, from the first one of the node."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and environment.local_rank() != 0
