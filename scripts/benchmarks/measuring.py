"""What the timing benchmarks share: their command, the device and its clock, and the line of the machine.

A benchmark yields ``Measurement``s. Its command prints them as they come, and with ``--to`` appends them to a file of
JSON lines, from which ``all.py`` makes one table.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Measurement:
    """Repeated measurements of one thing.

    Attributes:
        case: what was measured.
        unit: of the values.
        values: one or more.
    """

    case: str
    unit: str
    values: list[float]

    def row(self) -> list[str]:
        """The case, the median, the quartiles, the number of values, and the unit."""
        low, _, high = statistics.quantiles(self.values, n=4) if len(self.values) > 1 else 3 * self.values
        numbers = (f"{number:.4g}" for number in (statistics.median(self.values), low, high))
        return [self.case, *numbers, str(len(self.values)), self.unit]


def seconds() -> float:
    """The clock: of a GPU when its work is done; of a CPU its own seconds, so that other work does not count."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> str:
    """Device, processor, threads, load, versions and commit, in one line."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.partition(": ")[2] for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    versions = ", ".join(f"{library} {version(library)}" for library in ("lightning", "numpy"))
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads, load {os.getloadavg()[0]:.1f}"
    processor = names[0] if names else platform.processor() or platform.machine()
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}; {processor}, {threads}; {python}, {versions}; commit {commit}"


def run(description: str, measure: Callable[[bool], Iterator[Measurement]]) -> None:
    """The command of a benchmark: print its measurements, and append them to the file of ``--to``.

    Args:
        description: of its help.
        measure: yields the measurements; in a quick form if its argument is true.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least that runs every line")
    parser.add_argument("--to", type=Path, help="file of JSON lines")
    given = parser.parse_args()
    print(machine(), file=sys.stderr)
    for measurement in measure(given.quick):
        print(*measurement.row(), sep="  ", flush=True)
        if given.to:
            with given.to.open("a") as file:
                print(json.dumps(asdict(measurement)), file=file)
