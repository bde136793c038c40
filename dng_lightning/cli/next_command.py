"""The last lines of every command: the files that it wrote, and the next command."""

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dng_lightning.callbacks import ResultsWriter
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.storage import resources

if TYPE_CHECKING:
    from dng_lightning.cli.dng_cli import DNGCLI

MADE = ("model.ckpt", "model_index.json", "metrics.json")  # files that a training may write
SAME_MODEL = ("checkpoint", "forbidden", "classifier", "negative_checkpoints")  # settings shared by predict and test


def say(cli: "DNGCLI", interrupted: bool = False) -> None:
    """Print the last lines of a command, in the first process; nothing after a dry run.

    Args:
        cli: the command line, whose command has ended.
        interrupted: whether Ctrl-C or a signal ended it.
    """
    trainer: Any = cli.trainer
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    folder, words = Path(trainer.default_root_dir), ["dng", *cli.words]
    if interrupted:
        print("\n".join(_interrupted(trainer, words)), flush=True)
        return
    made = [_made(trainer, folder)] if trainer.state.fn == "fit" else []
    is_training = isinstance(cli.model, TrainedModule)
    following = _after_training(cli, folder, words) if is_training else _after_sampling(cli, folder, words)
    print("\n".join([*made, f"next: {shlex.join(following)}"]), flush=True)


def _interrupted(trainer: Trainer, words: list[str]) -> list[str]:
    """How to resume: a training from its last checkpoint, a sampling by the same command."""
    if trainer.state.fn != "fit":
        return ["interrupted; what is finished is kept", f"go on: {shlex.join(words)}"]
    said = f"interrupted after {trainer.global_step:,} steps"
    keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, ModelCheckpoint)]
    if not any(any(Path(str(keeper.dirpath)).glob("last*.ckpt")) for keeper in keepers):
        return [f"{said}; no checkpoint was written", f"start again: {shlex.join(_without(words, '--ckpt_path'))}"]
    return [said, f"go on: {shlex.join([*_without(words, '--ckpt_path'), '--ckpt_path', 'last'])}"]


def _without(words: list[str], flag: str) -> list[str]:
    """The words without a setting and its value."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if flag not in (before, word) and not word.startswith(f"{flag}=")
    ]


def _settings(words: list[str], *names: str) -> list[str]:
    """The settings whose names begin with one of ``names``, with their values."""
    found: list[str] = []
    for word, after in zip(words, [*words[1:], ""], strict=False):  # no words, or as many
        if word.startswith(names):
            found += [word] if "=" in word else [word, after]
    return found


def _made(trainer: Any, folder: Path) -> str:
    """The folder of a training, its files and its last metric."""
    files = ", ".join(name for name in MADE if (folder / name).exists())
    metrics = trainer.callback_metrics
    measured = [f"{name} {float(metrics[name]):.4g}" for name in ("val/accuracy", "val/loss") if name in metrics]
    said = ", ".join([*measured[:1], f"{trainer.global_step:,} steps"])
    keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, ModelCheckpoint)]
    kept = any(keeper.best_model_path or keeper.last_model_path for keeper in keepers)
    return f"written to {folder}: {files or ('checkpoints' if kept else 'no model')} ({said})"


def _after_training(cli: "DNGCLI", folder: Path, words: list[str]) -> list[str]:
    """The next command after a training: sampling, or training the classifier or model that is still missing."""
    module: Any = cli.model
    name = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
    if not _has_model(folder):
        return ["tensorboard", "--logdir", name]
    configs = _settings(words, "-c", "--config")
    config = Path(configs[-1].rpartition("=")[2]).stem if configs else "digits"
    data, known, predict = _settings(words, "--data"), resources.configs(), ["dng", "predict"]
    if isinstance(module, ClassifierModule):
        model, trains = name.removesuffix("-classifier"), config.removesuffix("_classifier")
        if module.schedule is not None:
            return [*predict, "--config", "classifier_posterior.yaml", "--model.noise_conditional_classifier", name]
        if model != name and _has_model(Path(model)):
            return [*predict, "--model.checkpoint", model, *_forbidden(module)]
        if trains != config and trains in known:
            return ["dng", "fit", "--config", f"{trains}.yaml", *data]
        return [*predict, "--model.classifier", name]
    if not isinstance(module, DiffusionModule):  # of text, whose overlay has the prompts
        overlay = f"{config}_predict"
        stable = ["--config", "stable_diffusion.yaml", "--config", f"{overlay}.yaml", "--model.checkpoint", name]
        return [*predict, *stable] if overlay in known else ["tensorboard", "--logdir", name]
    if not module.null_class and len(module.seen_classes) == 1 < len(module.class_names):
        pair = ["--config", "network_pair.yaml", "--model.negative_checkpoints", f"[{name}]"]
        return [*predict, *pair, *_forbidden(module)]
    if not module.null_class:  # nothing can be avoided with it alone
        return [*predict, "--config", "unguided.yaml", "--model.checkpoint", name, "--model.forbidden", "null"]
    if f"{config}_classifier" in known and resources.classifier_of(name) is None:
        return ["dng", "fit", "--config", f"{config}_classifier.yaml", *data]
    return [*predict, "--model.checkpoint", name, *_forbidden(module)]


def _has_model(folder: Path) -> bool:
    return any((folder / file).exists() for file in resources.MODELS)


def _forbidden(module: Any) -> list[str]:
    """Forbid the first class."""
    return ["--model.forbidden", module.class_names[module.seen_classes[0]]]


def _same_model(cli: "DNGCLI", words: list[str]) -> list[str]:
    """The settings of the model that ``dng test`` shares, where they are not its defaults."""
    if not isinstance(cli.model, GuidedSampler):
        return _settings(words, "--model.checkpoint")
    usual = yaml.safe_load(resources.config("test.yaml").read_text())["model"]["init_args"]
    now = cli.config[cli.subcommand].model.init_args
    found: list[str] = []
    for name in SAME_MODEL:
        value = now[name]
        if not isinstance(value, str | list | None):  # a class with settings: as the user gave it
            found += _settings(words, f"--model.{name}")
        elif value != usual.get(name):
            found += [f"--model.{name}", value if isinstance(value, str) else json.dumps(value)]
    return found


def _after_sampling(cli: "DNGCLI", folder: Path, words: list[str]) -> list[str]:
    """After ``dng predict`` a comparison or more images; after ``dng test`` charts, or calibrated images."""
    trainer: Any = cli.trainer
    model = _same_model(cli, words)
    if trainer.state.fn == "test":
        is_study = any(isinstance(callback, ResultsWriter) for callback in trainer.callbacks)
        if is_study:
            return ["tensorboard", "--logdir", str(folder / "tensorboard")]
        return ["dng", "predict", *_settings(model, "--model.checkpoint"), "--config", str(folder / "calibration.yaml")]
    study = f"{resources.name_of(cli.model.checkpoint).replace('-', '_')}_related"
    if study in resources.configs():
        return ["dng", "test", "--config", f"{study}.yaml"]
    if isinstance(cli.model, GuidedSampler) and cli.model.judge and cli.model.forbidden:
        return ["dng", "test", *model]
    return [*_without(words, "--data.first_seed"), "--data.first_seed", str(cli.datamodule.seeds.stop)]
