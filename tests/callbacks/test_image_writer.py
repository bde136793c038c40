"""What `dng predict` writes is in test_predict; here is who reads it again."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dng_lightning.callbacks import ImageWriter
from dng_lightning.data import Seeds
from dng_lightning.modules import GuidedSampler


def test_only_one_process_reads_the_records(digits: Path, tmp_path: Path):
    """The record is none, so that whoever reads it fails."""
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "00000000.json").write_text("no record")
    writer = ImageWriter()
    writer.folder = tmp_path
    strategy, sampler = SimpleNamespace(barrier=lambda name: None), GuidedSampler(str(digits), classifier=None)

    def finish(is_global_zero: bool) -> None:
        trainer = SimpleNamespace(strategy=strategy, is_global_zero=is_global_zero, datamodule=Seeds(n=1))
        writer.teardown(trainer, sampler, "predict")  # type: ignore[arg-type]  # all of a trainer that it looks at

    finish(False)
    with pytest.raises(ValueError, match="Expecting value"):
        finish(True)
