"""Every timing benchmark, one after the other, in one table: python scripts/benchmarks/all.py [--quick] [--to FOLDER]

Each runs in a process of its own. Finished ones are kept in FOLDER, so that the same command continues after an
interruption; FOLDER/benchmarks.md and .csv are the table, with the machine of each benchmark. The device is the GPU
where there is one. Seconds are those of the CPU itself on a CPU; the load says what else the machine did.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import Measurement, machine

MINUTES = {  # about, on two quiet cores
    "peers": 2, "sampling_overhead": 4, "transformer_overhead": 1, "scaling": 4, "imports": 1, "commands": 1,
    "training": 1, "many_files": 1,
}  # fmt: skip
HEAD = ["benchmark", "case", "median", "lower quartile", "upper quartile", "values", "unit"]


def measured(name: str, folder: Path, quick: bool) -> list[list[str]]:
    """The rows of a benchmark, which is run unless it is finished."""
    done, part = folder / f"{name}.jsonl", folder / f"{name}.part"
    about = folder / f"{name}.machine"
    if not done.exists():
        part.unlink(missing_ok=True)
        about.write_text(machine())
        script = Path(__file__).with_name(f"{name}.py")
        command = [sys.executable, str(script), "--to", str(part), *(["--quick"] if quick else [])]
        ended = subprocess.run(command, check=False)
        if ended.returncode:
            sys.exit(f"{name} ended with code {ended.returncode}; the same command continues with it")
        part.replace(done)
    return [[name, *Measurement(**json.loads(line)).row()] for line in done.read_text().splitlines()]


def main(words: Sequence[str] | None = None) -> None:
    """Run them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least that runs every line")
    parser.add_argument("--to", type=Path, default=Path("results/benchmarks"), help="folder of the table")
    parser.add_argument("--only", nargs="+", choices=MINUTES, default=list(MINUTES))
    given = parser.parse_args(words)
    folder = given.to / "quick" if given.quick else given.to
    folder.mkdir(parents=True, exist_ok=True)
    rows, lines = [], []
    for place, name in enumerate(given.only):
        left = sum(MINUTES[other] for other in given.only[place:])
        print(
            f"{name}: {place + 1} of {len(given.only)}; {'a few' if given.quick else f'about {left}'} minutes left",
            flush=True,
        )
        began = time.perf_counter()
        rows += measured(name, folder, given.quick)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        lines.append(f"- {name}: {(folder / f'{name}.machine').read_text()}")
    with (folder / "benchmarks.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *rows])
    table = [f"| {' | '.join(row)} |" for row in [HEAD, ["---"] * len(HEAD), *rows]]
    (folder / "benchmarks.md").write_text("\n".join([*table, "", *lines, ""]))
    print((folder / "benchmarks.md").read_text(), end="")


if __name__ == "__main__":
    main()
