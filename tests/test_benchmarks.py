"""All timing benchmarks in one table: the quick form, and an interrupted one."""

import csv
import json
from pathlib import Path

import measuring
import peers
import pytest
from measuring import Measurement
from running import DngProcess

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


@pytest.mark.slow
def test_the_quick_form_writes_one_table_and_keeps_what_is_finished(dng_process: DngProcess, tmp_path: Path):
    finished = tmp_path / "quick" / "sampling_overhead.jsonl"
    finished.parent.mkdir()
    finished.write_text(json.dumps({"case": "kept", "unit": "s", "values": [1.0]}) + "\n")
    finished.with_suffix(".machine").write_text("a machine")
    words = ["--quick", "--to", tmp_path, "--only", "sampling_overhead", "many_files", "commands", "training"]
    ended = dng_process(*words, cwd=tmp_path, script=ALL)
    assert ended.returncode == 0, ended.stderr
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
    assert all(float(row["median"]) >= 0 for row in rows)
    table = (tmp_path / "quick" / "benchmarks.md").read_text()
    assert table in ended.stdout
    assert "- sampling_overhead: a machine" in table
    assert measuring.torch.__version__ in table
