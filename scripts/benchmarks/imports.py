"""Time of imports over that of torch: python scripts/benchmarks/imports.py [--quick] [--to FILE]

Each in a process of its own, in seconds of the CPU.
"""

import subprocess
import sys
from collections.abc import Iterator

from measuring import Measurement, run

STATEMENTS = ("import dng_lightning.guidance", "from dng_lightning.text_to_image import guided")


def ratio(statement: str) -> float:
    """The time of torch and a statement over that of torch alone."""
    times = "import time; a = time.process_time(); import torch; b = time.process_time()"
    code = f"{times}; {statement}; print((time.process_time() - a) / (b - a))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def measure(quick: bool) -> Iterator[Measurement]:
    """Both statements."""
    for statement in STATEMENTS:
        yield Measurement(statement, "import / import torch", [ratio(statement) for _ in range(1 if quick else 5)])


if __name__ == "__main__":
    run(__doc__, measure)
