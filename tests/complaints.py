"""What the tests of bad input share."""

from pathlib import Path

import pytest
from running import Dng

GUIDANCE = "--model.guidance=DynamicNegativeGuidance"


def complaint(dng: Dng, capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that `dng` ends with; nothing else may have happened."""
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().parent.rglob("*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        dng(*args)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("INFO")]  # Lightning's greeting
    assert len(lines) == 1, err
    assert lines[0].startswith("dng: error: ")
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().parent.rglob("*")} == before
    return lines[0]
