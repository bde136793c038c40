"""A few cases of scripts/fuzz.py, and what crashes and interruptions come to; run the script for thousands."""

import json
from pathlib import Path
from types import SimpleNamespace

import fuzz
import pytest
from running import DngProcess


@pytest.mark.slow
def test_a_few_cases_of_each_kind_end_well_or_in_one_line(dng_process: DngProcess, tmp_path: Path):
    ended = dng_process("--count", 8, cwd=tmp_path, script=Path(fuzz.__file__))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for kind in fuzz.CASES:
        assert f"| {kind} | 8 | " in ended.stdout


def result(kind: str, number: int, found: str = "") -> dict[str, object]:
    return {"kind": kind, "number": number, "outcome": "ran", "found": found, "seconds": 0.1}


def test_a_crash_is_a_finding_and_the_others_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "fuzz.jsonl"
    path.write_text(json.dumps(result("yaml", 0)) + "\n")  # of an earlier run
    parts = []

    def worker(command: list[str], input: str, **_: object) -> SimpleNamespace:
        parts.append(json.loads(input))
        with path.open("a") as file:
            for kind, number in parts[-1]:
                if number == 2:
                    file.write('{"kind": "ya')
                    return SimpleNamespace(returncode=-11)
                print(json.dumps(result(kind, number)), file=file)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(fuzz.subprocess, "run", worker)
    results = fuzz.run_all([("yaml", number) for number in range(5)], path)
    assert parts == [[["yaml", number] for number in numbers] for numbers in ([1, 2, 3, 4], [3, 4])]
    assert [bool(one["found"]) for one in results.values()] == [False, False, True, False, False]
    assert "| yaml | 5 | 4 | 0 | 1 | " in fuzz.table(list(results.values()))
    assert "1 x the process ended with code -11" in fuzz.table(list(results.values()))


def test_a_worker_that_cannot_run_is_not_started_for_each_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuzz.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit, match="cannot run: it ends with code 1 before its first case"):
        fuzz.run_all([("yaml", number) for number in range(5)], tmp_path / "fuzz.jsonl")
