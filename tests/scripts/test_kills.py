"""`scripts/kills.py` in its short form: one kill of each command, and differences are found."""

import shutil
from pathlib import Path

from running import DngProcess

from scripts import kills

ROOT = Path(__file__).resolve().parents[2]


def test_a_killed_command_goes_on_to_the_same_output(dng_process: DngProcess, tmp_path: Path):
    words = ["--to", tmp_path / "kills", "--trials", 1, "--seed", 4]
    done = dng_process(*words, cwd=tmp_path, script=ROOT / "scripts" / "kills.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 kills: equal") == 3

    whole, trial = tmp_path / "kills" / "predict", tmp_path / "kills" / "predict-0"
    assert not kills.faults("predict", trial, whole)
    shutil.copy(whole / "00000001.png", trial / "00000002.png")
    (trial / "grid.png.1.dng-part").touch()
    found = kills.faults("predict", trial, whole)
    assert "00000002.png differs" in found
    assert "grid.png.1.dng-part is left" in found
