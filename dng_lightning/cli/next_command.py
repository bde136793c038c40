"""The last lines of every command: the files that it wrote, and the next command."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dng_lightning.callbacks import GuidedSampling, ResultsWriter
from dng_lightning.errors import SettingError
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
    folder, words = Path(trainer.default_root_dir), _words(cli.words)
    if interrupted:
        print("\n".join(_interrupted(trainer, words)), flush=True)
        return
    made = [_made(trainer, folder)] if trainer.state.fn == "fit" else []
    is_training = isinstance(cli.model, TrainedModule)
    following = _after_training(cli, folder, words) if is_training else _after_sampling(cli, folder, words)
    print("\n".join([*made, f"next: {shlex.join(following)}"]), flush=True)


def _words(given: Sequence[str]) -> list[str]:
    """The user's command, with the names of shipped configurations instead of their paths."""
    words = ["dng", *given]
    for place, word in enumerate(words):
        flag, equals, value = word.rpartition("=")
        path = Path(value)
        is_shipped = path.suffix == ".yaml" and path.is_absolute() and path.stem in resources.configs()
        if is_shipped and resources.config(path.stem) == path:
            words[place] = f"{flag}{equals}{path.name}"
    if words[1:4] == ["predict", "--config", "predict.yaml"]:  # which main adds
        del words[2:4]
    return words


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
    """The folder of a training, its files and its best metric."""
    files = ", ".join(name for name in MADE if (folder / name).exists())
    best = [
        f"best {keeper.monitor} {float(keeper.best_model_score):.4g}"
        for keeper in trainer.checkpoint_callbacks
        if getattr(keeper, "best_model_score", None) is not None
    ]
    metrics = [
        f"{name} {float(trainer.callback_metrics[name]):.4g}"
        for name in ("val/accuracy", "val/loss")
        if name in trainer.callback_metrics
    ]
    said = ", ".join([*(best or metrics[:1]), f"{trainer.global_step:,} steps"])
    return f"written to {folder}: {files or 'checkpoints'} ({said})"


def _after_training(cli: "DNGCLI", folder: Path, words: list[str]) -> list[str]:
    """The next command after a training: sampling, or training the classifier or model that is still missing."""
    module: Any = cli.model
    name = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
    if not any((folder / file).exists() for file in resources.MODELS):
        return ["tensorboard", "--logdir", name]
    config = next((Path(word.rpartition("=")[2]).stem for word in reversed(words) if word.endswith(".yaml")), "digits")
    data = _settings(words, "--data")
    if isinstance(module, ClassifierModule):
        if module.schedule is not None:
            settings = ["--model.noise_conditional_classifier", name]
            return ["dng", "predict", "--config", "classifier_posterior.yaml", *settings]
        model = name.removesuffix("-classifier")
        if model != name and _is_checkpoint(model):
            return ["dng", "predict", "--model.checkpoint", model, *_forbidden(module, cli)]
        trains = config.removesuffix("_classifier")
        if trains != config and trains in resources.configs():
            return ["dng", "fit", "--config", f"{trains}.yaml", *data]
        return ["dng", "predict", "--model.classifier", name]
    if not isinstance(module, DiffusionModule):
        shown = f"{config}_predict"
        overlay = ["--config", "stable_diffusion.yaml", "--config", f"{shown}.yaml", "--model.checkpoint", name]
        return ["dng", "predict", *overlay] if shown in resources.configs() else ["tensorboard", "--logdir", name]
    sampling = ["dng", "predict", "--model.checkpoint", name]
    if not module.null_class:  # nothing can be avoided with it alone
        one = ["--config", "network_pair.yaml", "--model.negative_checkpoints", f"[{name}]"]
        if len(module.seen_classes) == 1 and len(module.class_names) > 1:
            return ["dng", "predict", *one, *_forbidden(module, cli)]
        return [*sampling[:2], "--config", "unguided.yaml", *sampling[2:], "--model.forbidden", "null"]
    judge = f"{config}_classifier"
    if judge in resources.configs() and resources.classifier_of(name) is None:
        return ["dng", "fit", "--config", f"{judge}.yaml", *data]
    return [*sampling, *_forbidden(module, cli)]


def _is_checkpoint(name: str) -> bool:
    try:
        return resources.checkpoint(name).exists()
    except SettingError:
        return False


def _forbidden(module: Any, cli: "DNGCLI") -> list[str]:
    """The forbidden class of the training's ``GuidedSampling``, else the first class."""
    for callback in getattr(cli.trainer, "callbacks", []):
        if isinstance(callback, GuidedSampling) and callback.labels:
            return ["--model.forbidden", module.class_names[callback.labels[0]]]
    return ["--model.forbidden", module.class_names[module.seen_classes[0]]]


def _after_sampling(cli: "DNGCLI", folder: Path, words: list[str]) -> list[str]:
    """After ``dng predict`` a comparison or more images; after ``dng test`` charts, or calibrated images."""
    trainer: Any = cli.trainer
    model = _settings(words, *(f"--model.{name}" for name in SAME_MODEL))
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
