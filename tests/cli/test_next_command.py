"""Every command ends by saying what it made and which command comes next, and that command runs."""

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import QUIET, Dng

from dng_lightning.__main__ import main
from dng_lightning.modules import DiffusionModule
from dng_lightning.storage import resources

TINY = ["--model.net.channels=[8]", "--trainer.limit_val_batches=1", "--trainer.max_steps=4"]
FEW = ["--data.num_samples=8", "--model.steps=2", "--trainer.devices=1"]


def following(capsys: pytest.CaptureFixture[str], word: str = "next") -> list[str]:
    """The words of the command in the last line, without the program."""
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{word}: "), last
    return shlex.split(last.removeprefix(f"{word}: "))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_folder_to_results_by_the_printed_commands(
    dng: Dng, fake_mnist: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    photos = f"--data.root={fake_mnist.parent / 'photos'}"
    dng("fit", "--config", "image_folder.yaml", photos, *TINY)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith("written to logs/image-folder: model.ckpt, metrics.json (")
    assert printed[-2].endswith("4 steps)")
    program, *words = shlex.split(printed[-1].removeprefix("next: "))
    assert (program, words) == ("dng", ["fit", "--config", "image_folder_classifier.yaml", photos])
    dng(*words, *TINY)
    _, *words = following(capsys)
    assert words == ["predict", "--model.checkpoint", "logs/image-folder", "--model.forbidden", "cat"]
    dng(*words, *FEW)
    _, *words = following(capsys)
    assert words == ["test", "--model.checkpoint", "logs/image-folder", "--model.forbidden", "cat"]
    dng(*words, *FEW)  # the classifier and the statistics of the real images are found
    rows = (folder / "results" / "image-folder-without-cat" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 5
    assert following(capsys) == ["tensorboard", "--logdir", "results/image-folder-without-cat/tensorboard"]


def test_the_next_command_keeps_the_model_of_a_configuration(
    dng: Dng, digits: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    chosen = {"checkpoint": "digits", "forbidden": ["3", "4"], "classifier": "digits-classifier"}
    Path("mine.yaml").write_text(yaml.safe_dump({"model": {"init_args": chosen}}))
    dng("predict", "--config", "mine.yaml", *FEW)
    assert following(capsys) == [
        *["dng", "test", "--model.checkpoint", "digits", "--model.forbidden", '["3", "4"]'],
        *["--model.classifier", "digits-classifier"],
    ]


def test_the_classifier_may_come_first(dng: Dng, fake_mnist: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    photos = f"--data.root={fake_mnist.parent / 'photos'}"
    dng("fit", "--config=image_folder_classifier.yaml", photos, *TINY)
    assert following(capsys) == ["dng", "fit", "--config", "image_folder.yaml", photos]
    assert [path.name for path in Path("logs/image-folder-classifier").glob("*.pt")] == [
        "real-image-folder-classifier.pt"
    ]


def test_without_classes_more_images_come_next(
    dng: Dng, fake_mnist: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    dng("fit", "--config=image_folder.yaml", f"--data.root={fake_mnist.parent / 'photos' / 'cat'}", *TINY)
    _, *words = following(capsys)
    assert words == [
        *["predict", "--config", "unguided.yaml", "--model.checkpoint", "logs/image-folder"],
        *["--model.forbidden", "null"],
    ]
    dng(*words, *FEW)
    assert following(capsys)[-2:] == ["--data.first_seed", "8"]


def test_a_single_class_model_is_a_negative(tiny_single_class: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    main(["validate", f"--config={tiny_single_class / 'config.yaml'}", *QUIET])
    assert following(capsys)[:6] == [
        *["dng", "predict", "--config", "network_pair.yaml"],
        *["--model.negative_checkpoints", f"[{tiny_single_class}]"],
    ]


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts a training in its third step, once."""
    step = DiffusionModule.training_step

    def interrupted(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 2:
            monkeypatch.undo()
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", interrupted)


@pytest.mark.parametrize("given", [[], ["--config", "digits.yaml"]])
def test_an_interrupted_training_says_how_to_go_on(
    given: list[str], dng: Dng, tmp_path: Path, ctrl_c: None, capsys: pytest.CaptureFixture[str]
):
    folder = f"--trainer.default_root_dir={tmp_path / 'my run'}"
    with pytest.raises(SystemExit) as ended:
        dng("fit", *given, *TINY, folder, "--trainer.callbacks=[]")
    assert ended.value.code == 130
    program, *words = following(capsys, "go on")
    assert (program, words[-2:]) == ("dng", ["--ckpt_path", "last"])
    assert words[: 1 + len(given)] == ["fit", *given]
    main(words)
    assert "4 steps" in capsys.readouterr().out.splitlines()[-2]


def test_without_a_checkpoint_it_starts_again(dng: Dng, tmp_path: Path, ctrl_c: None, capsys: Any):
    none = ["--trainer.callbacks=[]", "--trainer.enable_checkpointing=false"]
    with pytest.raises(SystemExit):
        dng("fit", *TINY, *none, f"--trainer.default_root_dir={tmp_path}")
    assert "--ckpt_path" not in following(capsys, "start again")


def test_nothing_after_a_dry_run(dng: Dng, folder: Path, capsys: pytest.CaptureFixture[str]):
    dng("fit", *TINY, "--trainer.fast_dev_run=1")
    assert "next:" not in capsys.readouterr().out
    assert not list(folder.iterdir())


def test_the_classifier_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("logs/cats-classifier", "elsewhere/dogs-classifier"):
        Path(name).mkdir(parents=True)
        Path(name, "model.ckpt").touch()
    for name in ("logs/cats", "logs/cats/model.ckpt", "logs/cats.ckpt", tmp_path / "logs" / "cats"):
        own = resources.classifier_of(name)
        assert own is not None
        assert Path(own).samefile("logs/cats-classifier")
    assert resources.classifier_of("logs/dogs") is None
    assert resources.classifier_of("elsewhere/mnist") == "mnist-classifier"  # which ships
