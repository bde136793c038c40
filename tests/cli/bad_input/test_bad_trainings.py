"""A training whose folder, data, samples, optimizer or logger cannot be used is refused in one line."""

import importlib
from pathlib import Path

import pytest
from complaints import complaint
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning_utilities.core.imports import RequirementCache
from running import Dng
from training_folder import refused

# --- folders, configurations, data ---


@pytest.mark.parametrize("command", ["predict", "test", "fit"])
def test_a_folder_that_cannot_be_written_to(command: str, dng: Dng, from_tiny: list[str], capsys):
    Path("a-file").write_text("in the way")
    for folder in ("a-file", "a-file/below", "a-file/far/below"):
        settings = [*(from_tiny if command != "fit" else []), f"--trainer.default_root_dir={folder}"]
        line = complaint(dng, capsys, command, *settings)
        assert line == f"dng: error: cannot write to {folder}: name another --trainer.default_root_dir"


@pytest.mark.parametrize("folder", ["s3://bucket/x", "a" * 300, "dangling", "taken"])
def test_a_folder_that_cannot_be(folder: str, dng: Dng, from_tiny: list[str], capsys):
    Path("dangling").symlink_to("nowhere")
    Path("taken/config.yaml").mkdir(parents=True)
    line = refused(dng, capsys, "predict", *from_tiny, f"--trainer.default_root_dir={folder}")
    said = "is no folder of this machine", "File name too long", "dangling: File exists", "config.yaml: Is a directory"
    assert any(words in line for words in said)


def test_commands_that_do_not_suit_the_weights_or_the_optimizer(dng: Dng, from_tiny: list[str], capsys, caplog):
    net = ["--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.limit_val_batches=1"]
    assert "there is none in logs/digits" in refused(dng, capsys, "validate", *net, "--ckpt_path=last")
    assert "--ckpt_path is not for sampling" in refused(dng, capsys, "test", *from_tiny, "--ckpt_path=last")
    dng("validate", *net)
    assert "the weights that the network starts with" in caplog.text
    assert "model.optimizer: Invalid learning rate: -1.0" in refused(
        dng, capsys, "fit", *net, "--model.optimizer.lr=-1", "--trainer.default_root_dir=refused"
    )
    assert not Path("refused").exists()
    line = refused(dng, capsys, "predict", "--config=digits.yaml")
    assert "dng predict samples from a trained model: name it with --model.checkpoint" in line


def test_images_that_nothing_writes(dng: Dng, from_tiny: list[str], caplog):
    dng("predict", *from_tiny, "--data.num_samples=1", "--trainer.callbacks=null")
    assert "no ImageWriter in trainer.callbacks writes the images" in caplog.text


@pytest.mark.parametrize("config", ["mnist", "fashion_mnist", "mnist_only_0", "mnist_classifier"])
def test_data_that_are_not_there(config: str, dng: Dng, capsys):
    settings = ["--data.download=false", "--data.root=nowhere", "--trainer.callbacks=[{class_path: EMA}]"]
    line = complaint(dng, capsys, "fit", f"--config={config}", *settings)
    assert f"in {Path.cwd() / 'nowhere'} (data.download is false)" in line
    assert "--data.root" in line


def test_a_training_whose_samples_cannot_be_guided(dng: Dng, capsys):
    """`digits.yaml` samples without the digit 0."""
    assert "never saw class '0'" in complaint(dng, capsys, "fit", "--data.exclude_classes=0")
    assert "unconditional; set forbidden to null" in complaint(dng, capsys, "fit", "--model.net.num_classes=0")
    for method in ("ClassifierGuidance", "ClassifierFreeGuidance"):
        sampling = f"[{{class_path: GuidedSampling, init_args: {{guidance: {method}}}}}]"
        line = complaint(dng, capsys, "fit", f"--trainer.callbacks={sampling}")
        assert f"GuidedSampling has no class label, text, classifier or observer: {method} is not for it" in line
    schedule = ["--model.schedule=LinearSchedule", "--model.schedule.steps=49"]
    assert "steps must be between 1 and 49" in complaint(dng, capsys, "fit", *schedule)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--data.include_classes=unicorn", "no class 'unicorn'; Digits knows 0, 1, 2"),
        ("--data.batch_size=0", "batch_size"),
        ("--data.num_workers=-1", "data.num_workers must be at least 0; got -1"),
        ("--seed_everything=-1", "seed_everything: -1 is not in bounds"),
        ("--model.condition_dropout=2", "condition_dropout must be in [0, 1]"),
        ("--model.schedule.steps=0", "linear schedule needs steps >= 1"),
        ("--trainer.callbacks.decay=2", "decay must be in [0, 1)"),
    ],
)
def test_settings_of_a_training(setting: str, message: str, dng: Dng, capsys):
    schedule = ["--model.schedule=LinearSchedule"] if "schedule" in setting else []
    callbacks = ["--trainer.callbacks=[{class_path: EMA, init_args: {decay: 2}}]"] if "decay" in setting else []
    settings = [] if "decay" in setting else [setting]
    assert message in complaint(dng, capsys, "fit", *schedule, *callbacks, *settings)


def test_an_optimizer_for_gpus(dng: Dng, capsys):
    short = ["--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.max_steps=1", "--trainer.logger=false"]
    with pytest.raises(SystemExit) as ended:
        dng("fit", *short, "--model.optimizer.capturable=true", "--trainer.callbacks=[]")
    assert ended.value.code == 2
    assert "dng: error: If capturable=True" in capsys.readouterr().err


def test_a_metric_that_there_is_not(dng: Dng, capsys):
    short = ["--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.limit_train_batches=1"]
    short += ["--trainer.limit_val_batches=1", "--trainer.check_val_every_n_epoch=1", "--trainer.logger=false"]
    stopping = "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val/los}}]"
    with pytest.raises(SystemExit) as ended:
        dng("fit", *short, stopping, "--trainer.enable_checkpointing=false")
    assert ended.value.code == 2
    assert "dng: error: Early stopping conditioned on metric `val/los`" in capsys.readouterr().err


@pytest.mark.parametrize(("logger", "library"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_logger_that_is_not_installed(logger: str, library: str, dng: Dng, capsys, monkeypatch):
    module = importlib.import_module(WandbLogger.__module__ if library == "wandb" else MLFlowLogger.__module__)
    for name in ("_WANDB_AVAILABLE", "_MLFLOW_AVAILABLE", "_MLFLOW_SKINNY_AVAILABLE"):
        missing = RequirementCache(f"{library}>=9999", name)  # a version that does not exist
        monkeypatch.setattr(module, name, missing, raising=False)
    line = complaint(dng, capsys, "fit", f"--trainer.logger={logger}")
    assert f"dng: error: Requirement '{library}" in line


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_what_a_logger_s_library_complains_of(library: str, dng: Dng, capsys, monkeypatch):
    """No account, an unknown server, a backend of the past."""
    mistake = type("UsageError", (Exception,), {"__module__": f"{library}.errors"})

    def refused(*args: object) -> None:
        raise mistake("No API key configured.\nUse `login`")

    monkeypatch.setattr("dng_lightning.__main__.run", refused)
    assert complaint(dng, capsys, "fit") == "dng: error: trainer.logger: No API key configured."
