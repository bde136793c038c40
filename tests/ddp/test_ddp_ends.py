"""One of two processes that is interrupted, killed or fails ends the other one."""

import signal
import time
from pathlib import Path

import pytest
import torch
from running import DngProcess
from two_processes import FIT

# A process sends itself a signal in the fourth step of a training: process and signal are the first arguments.
TERMINATED = """
import os, sys
from dng_lightning.__main__ import main
from dng_lightning.cli import interruption
from dng_lightning.modules import DiffusionModule

step, rank, number = DiffusionModule.training_step, int(sys.argv[1]), int(sys.argv[2])

def terminated(self, *args):
    if self.global_rank == rank and self.global_step == 3:
        open("sent", "w").close()
        os.kill(os.getpid(), number)
    return step(self, *args)

DiffusionModule.training_step, interruption.EVERY = terminated, 0  # the processes exchange signals at each step
main(sys.argv[3:])
"""


def test_a_signal_to_one_process_ends_both(fitted: Path, dng_process: DngProcess, tmp_path: Path):
    command = [*FIT, "--trainer.default_root_dir=out"]
    (tmp_path / "terminated.py").write_text(TERMINATED)
    done = dng_process(1, signal.SIGTERM.value, *command, cwd=tmp_path, script=tmp_path / "terminated.py")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "interrupted after 4 steps\ngo on: dng fit" in done.stdout
    assert dng_process(*command, "--ckpt_path=last", cwd=tmp_path).returncode == 0
    found, expected = (torch.load(f / "out" / "model.ckpt", weights_only=True) for f in (tmp_path, fitted))
    assert all(torch.equal(found["state_dict"][name], weight) for name, weight in expected["state_dict"].items())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_other(rank: int, dng_process: DngProcess, tmp_path: Path):
    """At once by the closed connection, or within five seconds by Lightning; this waits for both, who share a pipe."""
    (tmp_path / "killed.py").write_text(TERMINATED)
    command = [rank, signal.SIGKILL.value, *FIT, "--trainer.default_root_dir=out"]
    done = dng_process(*command, cwd=tmp_path, script=tmp_path / "killed.py")
    assert time.time() - (tmp_path / "sent").stat().st_mtime < 60  # on a busy machine
    assert done.returncode == -signal.SIGKILL or "another process of this run has ended" in done.stderr


# The first process fails before it meets the other one, as when nobody reads what it prints.
FAILS = """
import os, sys
from lightning.pytorch.strategies import DDPStrategy
from dng_lightning.__main__ import main

def fails(self):
    raise BrokenPipeError(32, "Broken pipe")

if "LOCAL_RANK" not in os.environ:
    DDPStrategy.setup_environment = fails
main(sys.argv[1:])
"""


def test_a_process_that_fails_leaves_no_other_waiting(dng_process: DngProcess, tmp_path: Path):
    (tmp_path / "fails.py").write_text(FAILS)
    began = time.monotonic()
    dng_process(*FIT, "--trainer.default_root_dir=out", cwd=tmp_path, script=tmp_path / "fails.py")  # waits for both
    assert time.monotonic() - began < 200  # the other one waited for half an hour
