"""What `dng predict` writes is in predict/test_predict_output.py; here is who reads it again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dng_lightning.callbacks import ImageWriter, image_writer
from dng_lightning.data import Seeds
from dng_lightning.modules import GuidedSampler


def test_only_one_process_reads_the_records(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At the end, when all have written theirs."""
    (tmp_path / "records").mkdir()
    strategy, sampler = SimpleNamespace(barrier=lambda name: None), GuidedSampler(str(digits), classifier=None)

    def trainer(is_global_zero: bool) -> Any:
        """All of a trainer that the callback looks at."""
        settings = {"datamodule": Seeds(num_samples=1), "default_root_dir": str(tmp_path), "world_size": 1}
        settings |= {"fast_dev_run": False, "callbacks": []}
        return SimpleNamespace(strategy=strategy, is_global_zero=is_global_zero, **settings)

    writer = ImageWriter()
    writer.setup(trainer(False), sampler, "predict")
    read: list[Path] = []
    monkeypatch.setattr(image_writer, "_read", read.append)
    writer.teardown(trainer(False), sampler, "predict")
    assert not read
    writer.teardown(trainer(True), sampler, "predict")
    assert read == [tmp_path / "records" / "00000000.json"]
