"""All timing benchmarks in one table: the quick form, and an interrupted one."""

import contextlib
import csv
import io
import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import peers
import pytest
from measuring import Measurement
from running import ends_well

from dng_lightning.__main__ import main
from dng_lightning.modules import DiffusionModule

ALL = Path(measuring.__file__).with_name("all.py")


def test_a_row_has_the_median_and_the_quartiles():
    assert Measurement("a", "s", [3.0, 1.0, 2.0, 4.0, 5.0]).row() == ["a", "3", "1.5", "4.5", "5", "s"]
    assert Measurement("a", "s", [2.0]).row() == ["a", "2", "2", "2", "1", "s"]


def test_the_line_of_the_machine():
    assert f"torch {measuring.torch.__version__}" in measuring.machine()
    assert "load " in measuring.machine()


def test_the_loops_of_others_give_our_images():
    loops = list(peers.pairs(DiffusionModule.load("mnist"), 2, 5))
    for name, theirs, ours in loops:
        difference = (theirs() - ours()).abs().max() * 127.5
        assert difference < 0.5, f"{name}: {difference} grey levels"
    if len(loops) < 3:
        pytest.skip("PEER MISSING: denoising-diffusion-pytorch is not installed, its sampler was not compared")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python scripts and `dng` run in this process, which has imported torch, instead of one of their own."""
    run = subprocess.run

    def called(command: list[str], cwd: str = ".", **settings: Any) -> "subprocess.CompletedProcess[str]":
        if command[0] != sys.executable:
            return run(command, cwd=cwd, **settings)
        output = io.StringIO()
        with contextlib.chdir(cwd), contextlib.redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command[1:])
            if command[1:3] == ["-m", "dng_lightning"]:
                ends_well(main, command[3:])
            else:
                ends_well(partial(runpy.run_path, run_name="__main__"), command[1])
        return subprocess.CompletedProcess(command, 0, output.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", called)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_the_quick_form_writes_one_table_and_keeps_what_is_finished(tmp_path: Path, capsys):
    finished = tmp_path / "quick" / "sampling_overhead.jsonl"
    finished.parent.mkdir()
    finished.write_text(json.dumps({"case": "kept", "unit": "s", "values": [1.0]}) + "\n")
    finished.with_suffix(".machine").write_text("a machine")
    words = ["--quick", "--to", str(tmp_path), "--only", "sampling_overhead", "many_files", "commands", "training"]
    runpy.run_path(str(ALL))["main"](words)
    with (tmp_path / "quick" / "benchmarks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["case"] == "kept"
    assert [row["case"] for row in rows[1:11]] == [
        f"1,000 files, {run} run" for run in ("first", "next") for _ in range(5)
    ]
    assert [row["case"] for row in rows[11:14]] == [
        "dng --help", "dng predict --print_config", "one image in 2 steps"
    ]  # fmt: skip
    assert {row["case"].split()[0] for row in rows[14:]} >= {"dng_lightning", "diffusers"}
    assert [row for row in rows if not float(row["median"]) >= 0] == []
    table = (tmp_path / "quick" / "benchmarks.md").read_text()
    assert table in capsys.readouterr().out
    assert "- sampling_overhead: a machine" in table
    assert measuring.torch.__version__ in table
