"""A disk that is really full, whatever is written: one line, and what was finished is intact.

The disk is a file system of its own in memory, which is filled when a file of a certain name is about to be written,
and emptied before the same command runs again.
"""

import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import Dng

from dng_lightning.modules import DiffusionModule
from dng_lightning.storage.files import PART
from dng_lightning.storage.mapped_array import mapped_array

SIZE = 16 << 20
FIT = ["fit", "--config=digits.yaml", "--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.max_steps=8"]
FIT += ["--trainer.limit_val_batches=0", "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: "]
FIT[-1] += "{save_last: true, save_top_k: 0, every_n_train_steps: 4}}, {class_path: Export}]"


class Disk:
    """A file system of its own.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def fill(self) -> None:
        """Leave no byte."""
        with self.filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    def content(self) -> dict[str, bytes]:
        """The files, but for those of TensorBoard, by name."""
        found = [path for path in self.folder.rglob("*") if path.is_file() and "events" not in path.name]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found if path != self.filler}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("FULL DISK NOT TRIED: no right to mount a file system (root on Linux)")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_file_that_is_written_through_memory(disk: Disk):
    """The kernel would end the process."""
    disk.fill()
    with pytest.raises(OSError, match="No space left on device"):
        mapped_array(disk.folder / "array.npy", np.dtype("uint8"), (1000, 1000))


def run_on_full(disk: Disk, pattern: str, words: list[str], dng: Dng, monkeypatch: Any, capsys: Any) -> str:
    """The error of a command whose disk is full when it writes a file of a name like ``pattern``."""
    write = Path.write_bytes

    def writing(path: Path, content: Any) -> int:
        if fnmatch(path.name, f"{pattern}*"):
            disk.fill()
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", writing)
        with pytest.raises(SystemExit) as ended:
            dng(*words)
    assert disk.filler.exists(), f"no file like {pattern} was written"
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dng: error:")]
    assert "No space left on device; what is finished is kept" in line
    assert not list(disk.folder.rglob(f"*{PART}"))
    disk.filler.unlink()
    return line


@pytest.mark.parametrize(
    ("command", "patterns"),
    [
        ("predict", ["config.yaml", "00000002.png", "00000002.json", "labels.csv", "grid.png", "trajectories.png"]),
        ("test", ["2.pt", "results.csv", "results.md", "tradeoff.png", "samples.png"]),
    ],
)
def test_samples(
    command: str, patterns: list[str], disk: Disk, from_tiny: list[str], dng: Dng, monkeypatch: Any, capsys: Any
):
    words = [command, *from_tiny, "--data.num_samples=4", "--data.batch_size=2"]
    words += [f"--trainer.default_root_dir={disk.folder / 'out'}"]
    words += ["--trainer.callbacks.features=null"] if command == "test" else []
    before: dict[str, bytes] = {}
    for pattern in patterns:
        assert pattern in run_on_full(disk, pattern, words, dng, monkeypatch, capsys)
        finished = disk.content()
        kept = {name: content for name, content in before.items() if name.endswith(".png") and name.count("0") >= 7}
        assert kept.items() <= finished.items()
        before = finished
    dng(*words)
    whole = {name: content for name, content in before.items() if "/0000" in name}
    assert whole.items() <= disk.content().items()


@pytest.mark.parametrize("pattern", ["last.ckpt", "model.ckpt", "model.safetensors"])
def test_checkpoints(pattern: str, disk: Disk, dng: Dng, monkeypatch: Any, capsys: Any):
    words = [*FIT, f"--trainer.default_root_dir={disk.folder / 'fit'}"]
    assert pattern in run_on_full(disk, pattern, words, dng, monkeypatch, capsys)
    dng(*words, "--ckpt_path=last")
    assert torch.load(disk.folder / "fit" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    assert (disk.folder / "fit" / "model.safetensors").exists()


def test_a_training_whose_disk_fills_up(disk: Disk, dng: Dng, monkeypatch: Any, capsys: Any):
    """Also under the events of TensorBoard, which are not written aside; the last checkpoint is intact."""
    step = DiffusionModule.training_step

    def filling(module: Any, batch: Any, index: int) -> Any:
        if module.global_step == 5:
            disk.fill()
        return step(module, batch, index)

    words = [*FIT, "--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={disk.folder / 'fit'}"]
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", filling)
        with pytest.raises(SystemExit) as ended:
            dng(*words)
    assert ended.value.code == 2
    assert "dng: error: cannot write" in capsys.readouterr().err
    disk.filler.unlink()
    assert torch.load(disk.folder / "fit" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    dng(*words, "--ckpt_path=last")
    assert (disk.folder / "fit" / "model.ckpt").exists()
