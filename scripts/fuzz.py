"""Bad input in one command: settings of every class, command lines, YAML files, and damaged files.

    python scripts/fuzz.py                                       # 3,400 and 1,000 cases; continues where it was stopped
    python scripts/fuzz.py --only files --first 412 --count 1    # one case again

Each case ends well or with a ``SettingError`` in one line of at most 400 characters. A refused command leaves no
output; one that runs writes whole output, and a ``config.yaml`` with the settings as they were set. Anything else is a
finding, which is printed; the exit code is 1 if there are any. Sockets are disabled, memory is bounded, and a case that
takes longer than ``LIMIT`` seconds counts as a hang. Each process runs ``CASES_A_PROCESS`` cases; one that crashes is a
finding too.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CASES = {"settings": 2400, "commands": 600, "yaml": 400, "files": 1000}  # of each kind
CASES_A_PROCESS = 500
Case = tuple[str, int]


def finished(path: Path) -> dict[Case, dict[str, Any]]:
    """The results of finished cases."""
    lines = path.read_text().splitlines() if path.exists() else []
    results = [json.loads(line) for line in lines if line.endswith("}")]
    return {(result["kind"], result["number"]): result for result in results}


def run_all(cases: Sequence[Case], path: Path) -> dict[Case, dict[str, Any]]:
    """Run the cases that are not finished, and return the results of all."""
    worker, failures = Path(__file__).with_name("fuzz_worker.py"), 0
    done = finished(path)
    while left := [case for case in cases if case not in done]:
        part = left[:CASES_A_PROCESS]
        command = [sys.executable, *map(str, [worker, path, len(cases) - len(left), len(cases)])]
        ended = subprocess.run(command, input=json.dumps(part), text=True, check=False)
        done = finished(path)
        crashed = [case for case in part if case not in done]
        failures = failures + 1 if crashed == part else 0
        if failures == 3:
            sys.exit(f"{worker} cannot run: it ends with code {ended.returncode} before its first case")
        if crashed:
            kind, number = crashed[0]
            found = f"the process ended with code {ended.returncode} (a hang or a crash)"
            result = {"kind": kind, "number": number, "outcome": "crashed", "found": found, "seconds": 0}
            with path.open("a") as file:
                print("\n" + json.dumps(result), file=file)  # a process may have died within a line
            done[crashed[0]] = result
            print(f"--- {kind} {number}: {found}")
    return {case: done[case] for case in cases}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each kind what became of its cases, and the findings, the most frequent first."""
    kinds = defaultdict(list)
    for result in results:
        kinds[result["kind"]].append(result)
    lines = ["| kind | cases | ran | refused in a line | findings | median, s | slowest, s |", "|---" * 7 + "|"]
    for kind, own in kinds.items():
        outcomes, seconds = Counter(result["outcome"] for result in own), [result["seconds"] for result in own]
        found = sum(bool(result["found"]) for result in own)
        cells = [kind, len(own), outcomes["ran"], outcomes["refused"], found]
        lines.append(f"| {' | '.join(map(str, cells))} | {statistics.median(seconds):.2f} | {max(seconds):.1f} |")
    last = Counter(result["found"].strip().splitlines()[-1][:160] for result in results if result["found"])
    return "\n".join([*lines, *(f"{count} x {text}" for text, count in last.most_common())])


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, help="cases of each kind")
    parser.add_argument("--results", type=Path, default=Path("logs/fuzz.jsonl"))
    given = parser.parse_args()
    kinds = {given.only: CASES[given.only]} if given.only else CASES
    cases = [(kind, given.first + place) for kind, count in kinds.items() for place in range(given.count or count)]
    before, path = finished(given.results), given.results.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if all(case in before for case in cases):  # a whole run: start anew
        path.unlink(missing_ok=True)
    elif before:
        print(f"continues after {len(before)} cases of {path}; remove it to start anew", flush=True)
    try:
        results = run_all(cases, path)
    except KeyboardInterrupt:
        sys.exit(f"stopped: the same command continues from {path}")
    print(table(list(results.values())))
    return int(any(result["found"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
