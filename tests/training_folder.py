"""A short training of `digits.yaml` by the command line, and what a folder holds."""

from pathlib import Path

import pytest
from running import (
    Dng,
)

# --- what a folder holds ---

TINY_FIT = [
    "--config=digits.yaml",
    "--model.net.channels=[8]",
    "--model.net.attention=[]",
    "--trainer.max_steps=3",
    "--trainer.limit_val_batches=1",
    "--trainer.callbacks=[{class_path: EMA}, {class_path: Export}, {class_path: ModelCheckpoint, init_args: "
    "{save_last: true}}]",
]


def content(folder: Path) -> dict[str, bytes]:
    """What is in each file, but for TensorBoard's, which a training that is refused late starts as well."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("events")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(dng: Dng, capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The line with which `dng` refuses to do something."""
    with pytest.raises(SystemExit) as ended:
        dng(*args)
    assert ended.value.code == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("dng: error:"))
