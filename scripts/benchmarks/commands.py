"""Seconds of whole commands: python scripts/benchmarks/commands.py [--quick] [--to FILE]

Help, the printed configuration, the first image, and ``dng predict`` without settings (64 images of MNIST), each in a
process and an empty folder of its own. On a CPU the seconds are those that its processes used.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from measuring import DEVICE, Measurement, run

ONE = ["predict", "--data.num_samples=1"]
COMMANDS = {
    "dng --help": ["--help"],
    "dng predict --print_config": ["predict", "--print_config"],
    "one image in 2 steps": [*ONE, "--model.steps=2"],
    "one image": ONE,
    "dng predict": ["predict"],
}


def used(words: list[str]) -> float:
    """Seconds of a command."""
    before = os.times()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dng_lightning", *words]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = os.times()
    if DEVICE.type != "cpu":
        return after.elapsed - before.elapsed
    return sum(after[2:4]) - sum(before[2:4])  # user and system time of the children


def measure(quick: bool) -> Iterator[Measurement]:
    """All commands; quickly those before the first whole sampling."""
    for name, words in list(COMMANDS.items())[: 3 if quick else None]:
        repeats = 1 if quick or name == "dng predict" else 3
        yield Measurement(name, "s", [used(words) for _ in range(repeats)])


if __name__ == "__main__":
    run(__doc__, measure)
