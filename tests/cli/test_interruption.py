"""Ctrl-C and SIGTERM end a command so that it can be continued; two processes are in ``test_ddp.py``."""

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Dng, DngProcess

from dng_lightning.__main__ import main
from dng_lightning.modules import DiffusionModule, GuidedSampler

FIT = ["--config=digits.yaml", "--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.max_steps=5"]
FIT += ["--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2", "--trainer.check_val_every_n_epoch=1"]
KEEP = "{class_path: ModelCheckpoint, init_args: {save_last: true, save_top_k: 0, every_n_train_steps: 3}}"
FIT += [f"--trainer.callbacks=[{{class_path: EMA}}, {KEEP}, {{class_path: Export}}]"]

# Sends two signals in the fourth step; the first ends the training after the step, unless the second one comes.
TWICE = """
import os, signal, sys, time
from dng_lightning.__main__ import main
from dng_lightning.modules import DiffusionModule

step = DiffusionModule.training_step

def interrupted(self, batch, batch_idx):
    if self.global_step == 3:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    return step(self, batch, batch_idx)

DiffusionModule.training_step = interrupted
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Each command leaves the handlers as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def signals(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, at: int, number: int) -> None:
    """Let a method send this process a signal at its call ``at``, once."""
    original, calls = getattr(kind, method), iter(range(10_000))

    def sends(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(kind, method, sends)


def go_on(number: int, capsys: pytest.CaptureFixture[str], dng: Dng, *args: object) -> list[str]:
    """Run a command that a signal ends; the words of the command that continues it."""
    with pytest.raises(SystemExit) as ended:
        dng(*args)
    assert ended.value.code == 128 + number
    program, *words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("go on: "))
    assert program == "dng"
    return words


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a training exported."""
    return torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(dng: Dng, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    dng("fit", *FIT, f"--trainer.default_root_dir={folder}")
    return folder


@pytest.mark.parametrize(
    ("number", "method", "at"),
    [(signal.SIGTERM, "training_step", 1), (signal.SIGINT, "training_step", 4), (signal.SIGINT, "validation_step", 2)],
)
def test_a_training_goes_on_to_the_weights_of_an_uninterrupted_one(
    number: int, method: str, at: int, whole: Path, dng: Dng, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    signals(monkeypatch, DiffusionModule, method, at, number)
    words = go_on(number, capsys, dng, "fit", *FIT, f"--trainer.default_root_dir={tmp_path}")
    assert words[-2:] == ["--ckpt_path", "last"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    main(words)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    found, expected = weights(tmp_path), weights(whole)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_without_what_windows_lacks(whole: Path, dng: Dng, tmp_path: Path, monkeypatch: Any, capsys: Any):
    for name in ("alarm", "SIGALRM", "setitimer"):
        monkeypatch.delattr(signal, name)
    signals(monkeypatch, DiffusionModule, "training_step", 2, signal.SIGTERM)
    words = go_on(signal.SIGTERM, capsys, dng, "fit", *FIT, f"--trainer.default_root_dir={tmp_path}")
    main(words)
    assert all(torch.equal(weights(tmp_path)[name], weight) for name, weight in weights(whole).items())


def test_the_second_ctrl_c_ends_at_once(dng_process: DngProcess, tmp_path: Path):
    (tmp_path / "twice.py").write_text(TWICE)
    done = dng_process("fit", *FIT, "--trainer.default_root_dir=a", cwd=tmp_path, script=tmp_path / "twice.py")
    assert done.returncode == -signal.SIGINT
    assert "Ctrl-C ends at once" in done.stderr
    assert "Traceback" not in done.stderr
    assert torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("command", ["predict", "test"])
def test_what_is_sampled_is_kept(
    command: str, from_tiny: list[str], dng: Dng, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    words = [*from_tiny, "--data.num_samples=8", "--data.batch_size=4", f"--trainer.default_root_dir={tmp_path}"]
    words += ["--data.reference_data=Digits"] if command == "test" else []
    signals(monkeypatch, GuidedSampler, "draw", 3, signal.SIGTERM)
    again = go_on(signal.SIGTERM, capsys, dng, command, *words)
    kept = "records/*.json" if command == "predict" else "results.csv"
    before = {path: path.read_bytes() for path in tmp_path.glob(kept)}
    assert before
    main(again)
    assert all(path.read_bytes().startswith(content) for path, content in before.items())
    assert len(list(tmp_path.glob("0*.png"))) == 8 or len((tmp_path / "results.csv").read_text().splitlines()) == 6


def test_before_the_command_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dng_lightning.__main__.run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["fit"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "dng: interrupted\n"
