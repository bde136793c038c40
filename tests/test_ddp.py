"""Two processes train in lockstep, and draw the images of one process between them.

The images may differ by the rounding of the network in batches of other sizes; see `test_predict.py`.
"""

import csv
from pathlib import Path

import pytest
import torch
from running import QUIET, Dng, DngProcess
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dng_lightning.data.pixels import from_png
from dng_lightning.modules import DiffusionModule

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
STEPS, BATCH = 6, 64

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

# Validates with a loss that is the level, of levels that lie in other quarters for the other process.
OTHER_QUARTERS = """
import sys
import torch
from dng_lightning.__main__ import main
from dng_lightning.modules import DiffusionModule

def losses(self, *_):
    levels = torch.tensor([[600, 300, 10], [306, 900, 306]][self.global_rank])
    return levels.float(), levels

def at_end(self):
    logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
    torch.save(logged, f"rank{self.global_rank}.pt")

DiffusionModule.batch_losses, DiffusionModule.on_validation_end = losses, at_end
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def fitted(dng_process: DngProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training by two processes, with EMA, Export and GuidedSampling."""
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "watched.py").write_text(WATCHED)
    sampling = "{class_path: GuidedSampling, init_args: {num_samples: 5, steps: 2, classifier: digits-classifier}}"
    settings = ["--model.net.channels=[8]", "--model.net.attention=[]", f"--data.batch_size={BATCH}"]
    settings += [f"--trainer.max_steps={STEPS}", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1"]
    settings += ["--trainer.check_val_every_n_epoch=1", "--trainer.default_root_dir=out", "--model.prediction=v"]
    callbacks = f"--trainer.callbacks=[{{class_path: EMA}}, {sampling}, {{class_path: Export}}]"
    command = ["fit", "--config=digits.yaml", *QUIET, *TWO, *settings, callbacks]
    done = dng_process(*command, cwd=folder, script=folder / "watched.py")
    assert done.returncode == 0, done.stderr
    return folder


def test_training_is_in_lockstep(fitted: Path):
    ranks = [torch.load(fitted / f"rank{rank}.pt") for rank in (0, 1)]
    for rank in ranks:
        assert rank["global_step"] == len(rank["steps"]) == STEPS
    for one, other in zip(ranks[0]["steps"], ranks[1]["steps"], strict=True):
        assert torch.equal(one["weights"], other["weights"])  # as they are after the step
    assert torch.equal(ranks[0]["final"], ranks[1]["final"])
    assert not torch.equal(ranks[0]["final"], ranks[0]["steps"][-1]["weights"])  # the average has been handed over
    exported = DiffusionModule.load(str(fitted / "out"))
    assert torch.equal(torch.cat([weight.flatten() for weight in exported.parameters()]), ranks[0]["final"])


def test_the_processes_share_the_images_and_no_noise(fitted: Path):
    ranks = [torch.load(fitted / f"rank{rank}.pt")["steps"] for rank in (0, 1)]
    for one, other in zip(*ranks, strict=True):
        assert len(one["images"]) == len(other["images"]) == BATCH
        assert not torch.equal(one["levels"], other["levels"])  # seeded alike, both would draw the same
    epochs = [ranks[rank][3 * epoch : 3 * epoch + 3] for epoch in (0, 1) for rank in (0, 1)]
    shards = [{tuple(x.flatten().tolist()) for step in steps for x in step["images"]} for steps in epochs]
    assert not shards[0] & shards[1]  # no image twice in an epoch
    assert not shards[2] & shards[3]
    assert shards[0] != shards[2]


def test_processes_whose_levels_lie_in_other_quarters_log_the_mean_of_each(dng_process: DngProcess, tmp_path: Path):
    (tmp_path / "quarters.py").write_text(OTHER_QUARTERS)
    settings = ["--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.limit_val_batches=2"]
    command = ["validate", "--config=digits.yaml", *QUIET, *TWO, *settings, "--trainer.default_root_dir=out"]
    done = dng_process(*command, cwd=tmp_path, script=tmp_path / "quarters.py")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        logged = torch.load(tmp_path / f"rank{rank}.pt")
        assert [logged[f"val/loss_t/q{quarter}"] for quarter in (1, 2, 3, 4)] == [10, 304, 600, 900]


def test_guided_sampling_draws_its_images_once(fitted: Path):
    (path,) = (fitted / "out").glob("events*")  # the second process writes nothing
    board = EventAccumulator(str(path), size_guidance={"images": 0, "histograms": 0})
    board.Reload()
    for name in ("unguided", "guided"):
        assert [event.step for event in board.Images(f"samples/{name}")] == [3, 6]
        assert [event.histogram_value.num for event in board.Histograms(f"samples/class_counts_{name}")] == [5, 5]
        for tag in ("metrics/forbidden_rate", "metrics/kl", "metrics/fd"):
            assert len(board.Scalars(f"{tag}_{name}")) == 2
    assert len(board.Images("trajectories/scale_and_posterior")) == len(board.Scalars("metrics/scale_guided")) == 2


@pytest.fixture(scope="module")
def by_one(dng: Dng, from_tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the seeds 0..4 by one process."""
    folder = tmp_path_factory.mktemp("one")
    dng("predict", *from_tiny, "--data.num_samples=5", f"--trainer.default_root_dir={folder}")
    return folder


@pytest.mark.parametrize("n", [5, 1])
def test_two_processes_draw_the_images_of_one(
    n: int, by_one: Path, from_tiny: list[str], dng_process: DngProcess, tmp_path: Path
):
    settings = [f"--data.num_samples={n}", "--data.batch_size=2", "--trainer.default_root_dir=."]
    done = dng_process("predict", *from_tiny, *QUIET, *TWO, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1  # one report, over all images
    assert f"{1 / n:.1%}".rjust(6) in done.stdout
    names = [f"{seed:08d}.png" for seed in range(n)]
    for below in ("", "unguided"):
        assert sorted(path.name for path in (tmp_path / below).glob("0*.png")) == names
        for name in names:
            one, other = (from_png(folder / below / name).int() for folder in (by_one, tmp_path))
            assert (one - other).abs().max() <= 1
    rows = list(csv.DictReader((tmp_path / "labels.csv").open(newline="")))
    assert [int(row["seed"]) for row in rows] == list(range(n))
    assert not list(tmp_path.rglob("*.part"))


def test_two_processes_go_on_with_what_one_left_over(
    by_one: Path, from_tiny: list[str], dng: Dng, dng_process: DngProcess, tmp_path: Path
):
    """One image is left for two processes; the other one has nothing to do, and does not redo a finished image."""
    folder = f"--trainer.default_root_dir={tmp_path}"
    dng("predict", *from_tiny, "--data.num_samples=2", folder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("0*")}
    done = dng_process("predict", *from_tiny, *QUIET, *TWO, "--data.num_samples=3", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    one, other = (from_png(place / "00000002.png").int() for place in (by_one, tmp_path))
    assert (one - other).abs().max() <= 1


def test_two_processes_count_what_they_draw_once(
    from_tiny: list[str], dng: Dng, dng_process: DngProcess, tmp_path: Path
):
    """`dng test` with a number of images that two processes cannot share evenly."""
    settings = [*from_tiny, "--data.reference_data=Digits", "--data.num_samples=5", "--data.batch_size=2"]
    dng("test", *settings, f"--trainer.default_root_dir={tmp_path / 'one'}")
    done = dng_process("test", *settings, *QUIET, *TWO, "--trainer.default_root_dir=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (list(csv.DictReader((tmp_path / name / "results.csv").open(newline=""))) for name in ("one", "two"))
    assert len(one) == 5  # with what a filter lets pass
    for row, other in zip(one, two, strict=True):
        assert all(
            row[name] == other[name] for name in ("method", "guidance", "n", "seeds", "class_counts", "kl_retained")
        )


def test_a_mistake_is_told_once(dng_process: DngProcess, tmp_path: Path):
    done = dng_process("predict", *QUIET, *TWO, "--model.checkpoint=nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("dng: error:") == 1
    assert not list(tmp_path.iterdir())
