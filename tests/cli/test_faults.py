"""Full disks, diverging losses and lost processes: one line, and what was finished is intact."""

import errno
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Dng, closed_pipe

from dng_lightning.__main__ import complaint, main, setting_error
from dng_lightning.storage.files import PART, write_whole

FIT = ["--config=digits.yaml", "--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.max_steps=20"]
FIT += ["--trainer.limit_val_batches=0", "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: "]
FIT[-1] += "{save_last: true, save_top_k: 0, every_n_train_steps: 5}}, {class_path: Export}]"


def fills_up(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Let the disk be full after a number of files, the last of which is cut off."""
    left, write = iter(range(writes)), Path.write_bytes

    def limited(path: Path, content: bytes) -> int:
        if next(left, None) is not None:
            return write(path, content)
        write(path, bytes(content)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", limited)


def refused(capsys: pytest.CaptureFixture[str], dng: Dng, *args: object) -> str:
    """The line with which a command ends."""
    with pytest.raises(SystemExit) as ended:
        dng(*args)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dng: error:")]
    return line


def content(folder: Path) -> dict[str, bytes]:
    """The finished files of a folder but TensorBoard's, by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("events")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def sampled(from_tiny: list[str], dng: Dng, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of an uninterrupted run of each command."""
    folders = {command: tmp_path_factory.mktemp(command) for command in ("predict", "test")}
    for command, folder in folders.items():
        dng(command, *from_tiny, *few(command), f"--trainer.default_root_dir={folder}")
    return folders


def few(command: str) -> list[str]:
    """Few images, without figures of features."""
    return ["--data.num_samples=4"] + (["--trainer.callbacks.features=null"] if command == "test" else [])


@pytest.mark.parametrize(("command", "writes"), [("predict", 0), ("predict", 5), ("predict", 19), ("test", 4)])
def test_a_full_disk_keeps_what_is_finished(
    command: str, writes: int, sampled: Any, from_tiny: Any, dng: Dng, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    words = [command, *from_tiny, *few(command), f"--trainer.default_root_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        fills_up(patch, writes)
        assert "No space left on device; what is finished is kept" in refused(capsys, dng, *words)
    assert not list(tmp_path.rglob(f"*{PART}"))
    dng(*words)
    found, whole = content(tmp_path), content(sampled[command])
    assert found.keys() == whole.keys()
    same = [name for name in whole if name.endswith((".png", ".json")) and not name.startswith("tensorboard")]
    assert same
    assert {name: found[name] for name in same} == {name: whole[name] for name in same}


def test_a_full_disk_keeps_the_last_checkpoint(dng: Dng, tmp_path: Path, monkeypatch: Any, capsys: Any):
    words = ["fit", *FIT, f"--trainer.default_root_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        fills_up(patch, 3)  # config.yaml, environment.json, and the checkpoint of step 5
        assert "last.ckpt: No space left on device" in refused(capsys, dng, *words)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    dng(*words, "--ckpt_path=last")
    assert (tmp_path / "model.ckpt").exists()
    assert not list(tmp_path.rglob(f"*{PART}"))


def test_a_training_goes_on_when_the_reader_of_its_output_leaves(dng: Dng, tmp_path: Path, monkeypatch: Any):
    """As `head` does; the progress bar prints at each step."""
    words = ["fit", *FIT, f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=true"]
    with closed_pipe() as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        dng(*words)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 20
    assert (tmp_path / "model.ckpt").exists()


def test_a_training_that_diverges_keeps_the_last_checkpoint(dng: Dng, tmp_path: Path, monkeypatch: Any, capsys: Any):
    from dng_lightning.modules import DiffusionModule

    step = DiffusionModule.training_step

    def diverges(self: Any, *args: Any) -> Any:
        return step(self, *args) * (float("nan") if self.global_step >= 6 else 1)

    monkeypatch.setattr(DiffusionModule, "training_step", diverges)
    words = ["fit", *FIT, f"--trainer.default_root_dir={tmp_path}"]
    assert "the loss is nan after 7 steps: lower the optimizer's lr" in refused(
        capsys, dng, *words, "--trainer.log_every_n_steps=7"
    )
    monkeypatch.undo()
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    monkeypatch.setattr(DiffusionModule, "training_step", diverges)
    line = refused(capsys, dng, *words, "--trainer.log_every_n_steps=50", "--ckpt_path=last")
    assert "the weights are not finite: lower" in line
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


def test_a_training_without_a_step(dng: Dng, tmp_path: Path, capsys: Any):
    words = ["fit", *FIT, "--trainer.max_steps=-1", "--trainer.max_epochs=0", f"--trainer.default_root_dir={tmp_path}"]
    assert "no step was trained: raise trainer.max_steps" in refused(capsys, dng, *words)
    one_cycle = ["fit", "--config=digits.yaml", "--trainer.max_steps=0", f"--trainer.default_root_dir={tmp_path}"]
    assert "the run has no step: raise trainer.max_steps" in refused(capsys, dng, *one_cycle)
    assert not (tmp_path / "model.ckpt").exists()


def test_parts_of_killed_processes_are_removed(from_tiny: list[str], dng: Dng, tmp_path: Path):
    (tmp_path / f"grid.png.123{PART}").touch()
    (tmp_path / "download.part").touch()
    dng("predict", *from_tiny, "--data.num_samples=1", f"--trainer.default_root_dir={tmp_path}")
    assert not list(tmp_path.rglob(f"*{PART}"))
    assert (tmp_path / "download.part").exists()


def test_a_failed_write_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_whole(tmp_path / "file", b"before")
    fills_up(monkeypatch, 0)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "file", b"after, and longer")
    assert content(tmp_path) == {"file": b"before"}


def test_a_lost_process_is_one_line():
    error = setting_error(RuntimeError("[..gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"))
    assert error is not None
    assert complaint(error).startswith("another process of this run has ended: run the same command again")


def test_without_a_standard_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stdout", None)
    main(["--version"])
    monkeypatch.setattr("sys.stdout", io.StringIO())
    main(["--version"])
    assert not capsys.readouterr().err


def test_a_training_that_keeps_nothing_says_so(dng: Dng, tmp_path: Path, capsys: Any):
    words = ["fit", *FIT, "--trainer.max_steps=1", "--trainer.callbacks=[]", f"--trainer.default_root_dir={tmp_path}"]
    dng(*words)
    assert f"written to {tmp_path}: no model (" in capsys.readouterr().out
