"""What a folder holds is continued or left alone, and nothing of two settings is mixed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from running import (
    Dng,
)
from training_folder import TINY_FIT, content, refused

from dng_lightning.cli.output_folder import OutputFolder


def test_a_new_run_from_weights(tiny_fit: Path, dng: Dng, from_tiny: list[str], capsys):
    other = "--trainer.default_root_dir=b"
    dng("fit", *TINY_FIT, other, "--weights=a", "--model.optimizer.lr=0", "--model.scheduler=null")
    first, second = (torch.load(f"{name}/model.ckpt", weights_only=True)["state_dict"] for name in "ab")
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert yaml.safe_load(Path("b/config.yaml").read_text())["weights"] == "a"
    line = refused(dng, capsys, "fit", *TINY_FIT, "--weights=a", "--trainer.default_root_dir=a")
    assert "a holds model.ckpt made with these model settings" in line
    assert "--weights is for trainings" in refused(dng, capsys, "predict", *from_tiny, "--weights=a")


def test_what_cannot_be_resumed_is_refused_in_one_line(tiny_fit: Path, dng: Dng, capsys):
    torch.save({"state_dict": {}}, "foreign.ckpt")
    before = content(Path())

    def line(*args: str) -> str:
        return refused(dng, capsys, "fit", *TINY_FIT, "--trainer.default_root_dir=a", *args)

    assert "holds weights alone: start a new run from them with --weights" in line("--ckpt_path=a")
    exported = torch.load("a/model.ckpt", weights_only=True)
    torch.save(exported | {"pytorch-lightning_version": "1.5.10"}, "old.ckpt")
    before = content(Path())
    assert "holds weights alone" in line("--ckpt_path=old.ckpt")
    assert "--ckpt_path best" in line("--ckpt_path=best")
    assert "foreign.ckpt is no checkpoint of a training: Lightning did not write it" in line("--ckpt_path=foreign.ckpt")
    other = ["--model.net.channels=[16]", "--trainer.max_steps=9"]
    assert "of another network (net." in line("--ckpt_path=last", *other)
    assert content(Path()) == before


def test_a_dry_run_writes_nothing(tiny_fit: Path, dng: Dng, from_tiny: list[str], digits: Path):
    before = content(Path())
    dng("fit", *TINY_FIT, "--trainer.default_root_dir=a", "--trainer.fast_dev_run=true", "--model.net.channels=[16]")
    dng("predict", *from_tiny, "--trainer.fast_dev_run=true")
    drawn = [f"--model.checkpoint={digits}", "--model.classifier=digits-classifier", "--model.steps=2"]
    dng("test", *drawn, "--data.reference_data=Digits", "--trainer.fast_dev_run=true")
    dng("test", "--config=calibrate.yaml", *from_tiny, "--trainer.fast_dev_run=true")
    assert content(Path()) == before


def test_a_second_training_in_the_same_folder_is_refused(tiny_fit: Path, dng: Dng, capsys):
    before = content(tiny_fit)
    again = ["fit", *TINY_FIT, "--trainer.default_root_dir=a"]
    line = refused(dng, capsys, *again, "--model.net.channels=[16]")
    assert "a holds model.ckpt made with other settings (model.net.channels [8] instead of [16])" in line
    assert "resume it with --ckpt_path last, name another --trainer.default_root_dir, or remove it" in line
    assert "made with these model settings" in refused(dng, capsys, *again)
    dng("fit", *TINY_FIT, "--trainer.default_root_dir=b")
    elsewhere = "--ckpt_path=b/checkpoints/last.ckpt"
    assert "made with these model settings" in refused(dng, capsys, *again, elsewhere)
    (tiny_fit / "model.ckpt").rename("model.ckpt")  # as if it had been interrupted
    assert "last.ckpt made with these" in refused(dng, capsys, *again)
    Path("model.ckpt").rename(tiny_fit / "model.ckpt")
    assert content(tiny_fit) == before


def test_images_are_not_drawn_into_the_folder_of_a_training(tiny_fit: Path, dng: Dng, from_tiny: list[str], capsys):
    before = content(tiny_fit)
    line = refused(dng, capsys, "predict", *from_tiny, "--trainer.default_root_dir=a")
    assert "a holds model.ckpt made with other settings" in line
    assert content(tiny_fit) == before


def test_a_refused_resumption_writes_nothing(tiny_fit: Path, dng: Dng, capsys):
    before = content(tiny_fit)
    schedule = "{class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.1, total_steps: 5}}"
    settings = [f"--model.scheduler={schedule}", "--trainer.max_steps=9", "--trainer.default_root_dir=a"]
    assert "schedule" in refused(dng, capsys, "fit", *TINY_FIT, *settings, "--ckpt_path=last")
    assert content(tiny_fit) == before


def test_a_saved_configuration_runs_again_anywhere(tiny_fit: Path, dng: Dng):
    dng("fit", *TINY_FIT, "--trainer.max_steps=5", "--trainer.default_root_dir=a", "--ckpt_path=last")
    before = content(tiny_fit)
    dng("fit", "--config=a/config.yaml", "--trainer.default_root_dir=b")
    assert content(tiny_fit) == before
    assert {"config.yaml", "model.ckpt", "hparams.yaml", "checkpoints/last.ckpt"} <= set(content(Path("b")))
    assert list(Path("b").glob("events*"))
    assert json.loads(Path("b/metrics.json").read_text())["steps"] == 5  # from the start: a resumption is none of it


def test_whatever_the_logger_results_of_two_settings_do_not_mix(dng: Dng, from_tiny: list[str], tmp_path: Path, capsys):
    logger = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: " + str(tmp_path / "logged") + "}}"
    settings = [
        "predict",
        *from_tiny,
        "--data.num_samples=2",
        logger,
        f"--trainer.default_root_dir={tmp_path / 'drawn'}",
    ]
    dng(*settings)
    line = refused(dng, capsys, *settings, "--model.guidance=NegativePrompting")
    assert "records made with other settings (model.guidance" in line
    line = refused(dng, capsys, *settings, "--model.steps=2")
    assert "(model.steps 3 instead of 2)" in line


def test_whatever_the_logger_a_training_finds_its_last_checkpoint(dng: Dng, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["fit", *TINY_FIT, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logged"]
    settings += ["--trainer.default_root_dir=a", "--model.scheduler=null"]
    dng(*settings)
    dng(*settings, "--ckpt_path=last", "--trainer.max_steps=5")
    assert json.loads(Path("a/metrics.json").read_text())["steps"] == 5
    assert [path.name for path in Path("a/checkpoints").iterdir()] == ["last.ckpt"]


def test_images_of_a_model_that_was_trained_or_calibrated_anew_are_others(
    tiny_checkpoint: Path, dng: Dng, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "model")
    settings = [
        "--model.checkpoint=model",
        "--model.classifier=digits-classifier",
        "--model.steps=3",
        "--data.num_samples=4",
    ]
    method = "{class_path: DynamicNegativeGuidance, init_args: {posterior: CalibratedPosterior}}"
    compared = [*settings, "--data.reference_data=Digits", "--model.guidances=[" + method + "]"]
    here = "--trainer.default_root_dir=here", "--trainer.default_root_dir=there"
    dng("predict", *settings, here[0])
    dng("predict", *settings)
    dng("test", *compared, here[1])
    rows = len(Path("there/results.csv").read_text().splitlines())

    calibration = {"calibration": [[-5.0, 1.0, -2.0], [5.0, 1.0, -1.0]]}
    guidance = {"init_args": {"posterior": {"init_args": calibration}}}
    Path("model/calibration.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"guidance": guidance}}}))
    assert "(the calibration has changed since)" in refused(dng, capsys, "predict", *settings, here[0])
    dng("predict", *settings)  # the default folder is another one then
    assert len(list(Path("samples").iterdir())) == 2
    dng("test", *compared, here[1])  # another row
    assert len(Path("there/results.csv").read_text().splitlines()) == rows + 1

    stored = torch.load("model/model.ckpt", weights_only=True)
    stored["state_dict"]["net.stem.bias"] += 0.1
    torch.save(stored, "model/model.ckpt")
    for command, folder, given in (("predict", here[0], settings), ("test", here[1], compared)):
        assert "(the checkpoint has changed since)" in refused(dng, capsys, command, *given, folder)


def test_a_file_of_prompts_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    class Arguments(SimpleNamespace):
        def __getitem__(self, name: str) -> Any:
            return getattr(self, name)

    arguments = Arguments(checkpoint="owner/model", prompts="some/red team.csv", negative_prompt="wine", guidance=None)
    model = SimpleNamespace(class_path="PipelineSampler", init_args=arguments)
    cli: Any = SimpleNamespace(subcommand="test", config={"test": SimpleNamespace(model=model)}, is_sampling=True)
    assert OutputFolder(cli).default() == "results/model-red_team"
    arguments.prompts = None
    assert OutputFolder(cli).default() == "results/model-without-wine"
