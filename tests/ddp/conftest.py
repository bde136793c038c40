"""A training by two processes, watched."""

from pathlib import Path

import pytest
from running import DngProcess
from two_processes import FIT

# Runs `dng` and notes what each process does: its losses, its images, and its weights after each step and at the end.
WATCHED = """
import sys
import torch
from dng_lightning.__main__ import main
from dng_lightning.data.pixels import from_png
from dng_lightning.modules import DiffusionModule

steps, losses = [], DiffusionModule.losses

def weights(self):
    return torch.cat([weight.detach().flatten() for weight in self.parameters()])

def watched(self, images, labels, generator=None):
    errors, levels = losses(self, images, labels, generator)
    if generator is None:
        steps.append({"images": images, "labels": labels, "levels": levels, "loss": float(errors.detach().mean())})
    return errors, levels

def after_step(self, *_):
    steps[-1]["weights"] = weights(self)

def at_end(self):
    told = {"steps": steps, "global_step": self.trainer.global_step, "final": weights(self)}
    torch.save(told, f"rank{self.global_rank}.pt")

DiffusionModule.losses, DiffusionModule.on_train_batch_end, DiffusionModule.on_fit_end = watched, after_step, at_end
main(sys.argv[1:])
"""


@pytest.fixture(scope="session")
def fitted(dng_process: DngProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training by two processes, with EMA, Export and GuidedSampling."""
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "watched.py").write_text(WATCHED)
    done = dng_process(*FIT, "--trainer.default_root_dir=out", cwd=folder, script=folder / "watched.py")
    assert done.returncode == 0, done.stderr
    return folder
