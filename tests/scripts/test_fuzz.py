"""A few cases of scripts/fuzz.py; run the script itself for thousands."""

from pathlib import Path

import pytest
from running import DngProcess

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"


@pytest.mark.slow
def test_a_few_cases_of_each_kind_end_well_or_in_one_line(dng_process: DngProcess, tmp_path: Path):
    for kind, count in {"settings": 60, "files": 60, "yaml": 4, "commands": 4}.items():
        ended = dng_process("--only", kind, "--count", count, cwd=tmp_path, script=SCRIPT)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert f"{kind}: {count} cases" in ended.stdout
