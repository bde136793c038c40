"""Kill fit, predict and test at random moments, run them to the end, and compare with runs that were left alone.

Each trial begins in an empty folder. Its process group gets SIGKILL once it has used a random share of the processor
time of the whole run, as often as ``--each`` says; then the command runs to the end. Compared are the weights (bit for
bit), the images, labels and figures (byte for byte) and the rows of results (but for the speed). No finished image and
no row may be written again, and no temporary file may be left. The processes are copies of this one, which has imported
everything.

    python scripts/kills.py --to /tmp/kills --trials 20
"""

import argparse
import csv
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

import dng_lightning.cli  # noqa: F401  # so that the copies need not import it
from dng_lightning.__main__ import main as dng
from dng_lightning.storage.files import PART

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SEEDS = ["--model.checkpoint=digits", "--model.forbidden=3", "--model.steps=5", "--data.num_samples=24"]
KEEP = "{class_path: ModelCheckpoint, init_args: {save_last: true, save_top_k: 0, every_n_train_steps: 7}}"
COMMANDS = {
    "fit": [
        *("fit", "--config=digits.yaml", *QUIET, "--model.net.channels=[16]", "--model.net.attention=[]"),
        *("--trainer.max_steps=30", "--trainer.check_val_every_n_epoch=1"),
        f"--trainer.callbacks=[{{class_path: EMA}}, {KEEP}, {{class_path: Export}}]",
    ],
    "predict": ["predict", *SEEDS, *QUIET, "--data.batch_size=8"],
    "test": [
        *("test", *SEEDS, *QUIET, "--data.batch_size=8", "--data.reference_data=Digits"),
        "--model.guidances=[NegativePrompting, DynamicNegativeGuidance]",
    ],
}
VARYING = ("images_per_second", "memory_mb")  # columns of the cost, which depends on the machine


@dataclass
class Tally:
    """What a command went through."""

    kills: int = 0
    faults: list[str] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)


def started(command: list[str], folder: Path, log: Path) -> int:
    """Start a command as a process group of its own; its number."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        dng([*command, f"--trainer.default_root_dir={folder}"])
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def used(process: int) -> float:
    """Seconds of processor time of a process."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def run(command: list[str], folder: Path, log: Path, limit: float = float("inf")) -> tuple[bool, float]:
    """Run a command until it ends or has used ``limit`` seconds; whether it was killed, and the seconds.

    Raises:
        RuntimeError: it failed.
    """
    process, seconds = started(command, folder, log), 0.0
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        if (seconds := used(process)) >= limit:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True, seconds
        time.sleep(0.002)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{command[0]} failed: {log.read_text().splitlines()[-1]}")
    return False, seconds


def written(folder: Path) -> dict[str, int]:
    """Finished images, by the time of their record."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("records/*.json")}


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table without the costs."""
    table = csv.DictReader(io.StringIO(path.read_text()))
    return [{name: value for name, value in row.items() if name not in VARYING} for row in table]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights of an exported model."""
    return torch.load(path, weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two exports hold the same weights, bit for bit."""
    found, expected = tensors(one), tensors(other)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def same_pixels(one: Path, other: Path) -> bool:
    """Whether two images have the same pixels."""
    return Image.open(one).tobytes() == Image.open(other).tobytes()


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files are equal."""
    return one.read_bytes() == other.read_bytes()


def same_rows(one: Path, other: Path) -> bool:
    """Whether two tables are equal but for the costs."""
    return rows(one) == rows(other)


def same_metrics(one: Path, other: Path) -> bool:
    """Whether two trainings have the same metrics."""
    found, expected = (json.loads(path.read_text()) for path in (one, other))
    return bool(found == expected)


# How files are compared, by pattern; the trade-off's figure and the tables in Markdown show the cost.
COMPARED: dict[str, dict[str, Callable[[Path, Path], bool]]] = {
    "fit": {"model.ckpt": same_weights, "metrics.json": same_metrics},
    "predict": {"**/*.png": same_pixels, "**/records/*.json": same_bytes, "labels.csv": same_bytes},
    "test": {
        "*.csv": same_rows,
        "histograms.png": same_pixels,
        "samples.png": same_pixels,
        "calibration.png": same_pixels,
    },
}


def faults(name: str, folder: Path, whole: Path) -> list[str]:
    """The differences between the folder of a trial and that of the run that was left alone."""
    found = [f"{path.name} is left" for path in folder.rglob(f"*{PART}")]
    tops = [{path.name for path in place.iterdir() if not path.name.startswith("events")} for place in (folder, whole)]
    found += [f"{extra} is in one folder only" for extra in tops[0] ^ tops[1]]
    for pattern, same in COMPARED[name].items():
        for expected in sorted(whole.glob(pattern)):
            path = folder / expected.relative_to(whole)
            if not path.exists() or not same(path, expected):
                found.append(f"{path.relative_to(folder)} differs")
    return found


def trial(name: str, to: Path, number: int, total: float, each: int, tally: Tally) -> None:
    """Kill a command at random moments, run it to the end, and compare."""
    folder, log, command = to / f"{name}-{number}", to / f"{name}-{number}.log", COMMANDS[name]
    for _ in range(each):
        again = ["--ckpt_path=last"] if name == "fit" else []
        moment = random.uniform(0.02, 0.98) * total
        before = written(folder)
        killed, seconds = run([*command, *again], folder, log, moment)
        tally.faults += [f"{number}: {path} was written again" for path in changed(before, folder)]
        if not killed:
            break
        tally.kills += 1
        tally.moments.append(seconds / total)
    before = written(folder)
    table = folder / "results.csv"
    lines = table.read_text().splitlines() if table.exists() else []
    run([*command, *(["--ckpt_path=last"] if name == "fit" else [])], folder, log)
    tally.faults += [f"{number}: {path} was written again" for path in changed(before, folder)]
    if lines and table.read_text().splitlines()[: len(lines)] != lines:  # the speed would differ
        tally.faults.append(f"{number}: a row was evaluated again")
    tally.faults += [f"{number}: {fault}" for fault in faults(name, folder, to / name)]


def changed(before: dict[str, int], folder: Path) -> list[str]:
    """Records that were written again."""
    now = written(folder)
    return [path for path, when in before.items() if now.get(path) != when]


def main() -> None:
    """Run all trials, print a line for each, and a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="an empty folder for what the runs write")
    parser.add_argument("--trials", type=int, default=20, help="trials of each command")
    parser.add_argument("--each", type=int, default=1, help="kills of each trial")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    given = parser.parse_args()
    to = given.to.absolute()
    to.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # a process with threads cannot be copied
    random.seed(given.seed)
    tallies = {}
    for name in given.commands:
        tally = tallies[name] = Tally()
        _, total = run(COMMANDS[name], to / name, to / f"{name}.log")
        print(f"{name}: {total:.1f} s of processor time uninterrupted", flush=True)
        for number in range(given.trials):
            known = len(tally.faults)
            trial(name, to, number, total, given.each, tally)
            said = "; ".join(tally.faults[known:]) or "equal"
            print(f"{name} {number + 1}/{given.trials}, {tally.kills} kills: {said}", flush=True)
    print("\n| command | trials | kills | earliest | latest | faults |\n|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        ends = f"{min(tally.moments):.0%} | {max(tally.moments):.0%}" if tally.moments else "– | –"
        print(f"| {name} | {given.trials} | {tally.kills} | {ends} | {len(tally.faults)} |")
    sys.exit(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    main()
