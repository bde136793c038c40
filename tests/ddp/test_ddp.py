"""Two processes train in lockstep, and draw the images of one process between them.

The images may differ by the rounding of the network in batches of other sizes; see `predict/test_predict_seeds.py`.
"""

import csv
import json
from pathlib import Path

import pytest
import torch
from running import QUIET, Dng, DngProcess
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from two_processes import BATCH, STEPS, TWO

from dng_lightning.data.pixels import from_png
from dng_lightning.modules import DiffusionModule

# Runs commands one after the other, each by two processes that begin as copies of this one, which has imported all;
# they find the environment that a launcher as torchrun gives them. What they print and their exit codes go to files.
BY_TWO = """
import json, os, socket, sys, traceback
from pathlib import Path
from lightning.pytorch.utilities import rank_zero_only
import dng_lightning.cli
from dng_lightning.__main__ import main

def run(rank, port, name, patch, argv):
    os.chdir(name)
    for descriptor, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"../{name}.{file}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank  # it looked for LOCAL_RANK at its import
    exec(patch, {})
    main(argv)

for name, patch, argv in json.loads(Path("commands.json").read_text()):
    Path(name).mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(rank, port, name, patch, argv)
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    Path(f"{name}.codes").write_text(json.dumps(codes))
"""

# Validates with a loss that is the level, of levels that lie in other quarters for the other process.
OTHER_QUARTERS = """
import torch
from dng_lightning.modules import DiffusionModule

def losses(self, *_):
    levels = torch.tensor([[600, 300, 10], [306, 900, 306]][self.global_rank])
    return levels.float(), levels

def at_end(self):
    logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
    torch.save(logged, f"rank{self.global_rank}.pt")

DiffusionModule.batch_losses, DiffusionModule.on_validation_end = losses, at_end
"""


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


@pytest.fixture(scope="module")
def compared(from_tiny: list[str]) -> list[str]:
    """`dng test` with a number of images that two processes cannot share evenly."""
    return [*from_tiny, "--data.reference_data=Digits", "--data.num_samples=5", "--data.batch_size=2"]


@pytest.fixture(scope="module")
def by_two(
    dng: Dng,
    dng_process: DngProcess,
    from_tiny: list[str],
    compared: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder of what two processes did, a folder each command.

    What they printed is beside it. Two images of `left` were there before.
    """
    folder, here = tmp_path_factory.mktemp("two"), "--trainer.default_root_dir=."
    dng("predict", *from_tiny, "--data.num_samples=2", f"--trainer.default_root_dir={folder / 'left'}")
    times = {str(path): path.stat().st_mtime_ns for path in (folder / "left").rglob("0*")}
    (folder / "before.json").write_text(json.dumps(times))
    net = ["--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.limit_val_batches=2"]
    predict = ["predict", *from_tiny, *QUIET, *TWO, "--data.batch_size=2", here]
    commands = [
        ("quarters", OTHER_QUARTERS, ["validate", "--config=digits.yaml", *QUIET, *TWO, *net, here]),
        ("five", "", [*predict, "--data.num_samples=5"]),
        ("one", "", [*predict, "--data.num_samples=1"]),
        ("left", "", [*predict, "--data.num_samples=3"]),
        ("compared", "", ["test", *compared, *QUIET, *TWO, here]),
    ]
    (folder / "commands.json").write_text(json.dumps(commands))
    (folder / "by_two.py").write_text(BY_TWO)
    done = dng_process(cwd=folder, script=folder / "by_two.py")
    assert done.returncode == 0, done.stderr
    return folder


def printed_by_two(folder: Path, name: str) -> str:
    """What two processes printed that ended well."""
    assert json.loads((folder / f"{name}.codes").read_text()) == [0, 0], (folder / f"{name}.err").read_text()
    return (folder / f"{name}.out").read_text()


def test_processes_whose_levels_lie_in_other_quarters_log_the_mean_of_each(by_two: Path):
    printed_by_two(by_two, "quarters")
    for rank in (0, 1):
        logged = torch.load(by_two / "quarters" / f"rank{rank}.pt")
        assert [logged[f"val/loss_t/q{quarter}"] for quarter in (1, 2, 3, 4)] == [10, 304, 600, 900]


@pytest.mark.parametrize(("name", "n"), [("five", 5), ("one", 1)])
def test_two_processes_draw_the_images_of_one(name: str, n: int, by_one: Path, by_two: Path):
    text, folder = printed_by_two(by_two, name), by_two / name
    assert text.count("written to") == 1  # one report, over all images
    assert f"{1 / n:.1%}".rjust(6) in text
    names = [f"{seed:08d}.png" for seed in range(n)]
    for below in ("", "unguided"):
        assert sorted(path.name for path in (folder / below).glob("0*.png")) == names
        for image in names:
            one, other = (from_png(place / below / image).int() for place in (by_one, folder))
            assert (one - other).abs().max() <= 1
    rows = list(csv.DictReader((folder / "labels.csv").open(newline="")))
    assert [int(row["seed"]) for row in rows] == list(range(n))
    assert not list(folder.rglob("*.part"))


def test_two_processes_go_on_with_what_one_left_over(by_one: Path, by_two: Path):
    """One image is left for two processes; the other one has nothing to do, and does not redo a finished image."""
    printed_by_two(by_two, "left")
    before = json.loads((by_two / "before.json").read_text())
    assert len(before) == 8  # images and records, with and without guidance
    assert {path: Path(path).stat().st_mtime_ns for path in before} == before
    one, other = (from_png(place / "00000002.png").int() for place in (by_one, by_two / "left"))
    assert (one - other).abs().max() <= 1


def test_two_processes_count_what_they_draw_once(compared: list[str], by_two: Path, dng: Dng, tmp_path: Path):
    printed_by_two(by_two, "compared")
    dng("test", *compared, f"--trainer.default_root_dir={tmp_path}")
    one, two = (list(csv.DictReader((f / "results.csv").open(newline=""))) for f in (tmp_path, by_two / "compared"))
    assert len(one) == 5  # with what a filter lets pass
    for row, other in zip(one, two, strict=True):
        assert all(
            row[name] == other[name] for name in ("method", "guidance", "n", "seeds", "class_counts", "kl_retained")
        )


def test_a_mistake_is_told_once(dng: Dng, tmp_path: Path, monkeypatch, capfd):
    """Before the second process is started."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        dng("predict", *TWO, "--model.checkpoint=nowhere")
    assert ended.value.code == 2
    assert capfd.readouterr().err.count("dng: error:") == 1
    assert not list(tmp_path.iterdir())
