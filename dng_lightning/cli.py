"""The command line: a stock LightningCLI over the package's modules, datamodules and callbacks."""

import itertools
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, _typehints
from jsonargparse._util import NestedArg, parse_value_or_config
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from dng_lightning import (
    callbacks,
    data,
    guidance,
    modules,
    networks,
    next_command,
    open_settings,
    posterior,
    resources,
    schedule,
)
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.tensorboard import RunLogger
from dng_lightning.files import file_name
from dng_lightning.modules.base_module import TrainedModule, reading
from dng_lightning.modules.image_sampler import ImageSampler
from dng_lightning.saved_config import SaveConfig, difference, inputs_of
from dng_lightning.text_to_image import observers, sampler, vision_language

# What is imported can be named in a configuration by its class name alone; modules import judges and pretrained.
NAMED = callbacks, data, guidance, modules, networks, posterior, schedule
NAMED_IN_TEXT_TO_IMAGE = observers, sampler, vision_language

# For each command the files by which a folder holds what it made, and the settings of the model that it may change.
FREE = ["guidance", "guidances", "steps", "observer", "noise_conditional_classifier", "retrained_checkpoint", "compile"]
RESULTS = {
    "fit": (("model.ckpt", "model_index.json", "checkpoints/*.ckpt"), ()),
    "predict": (("records",), ()),
    "test": (("results.csv",), FREE),
}

# The setting of each sampler that names what to avoid, for the name of its output folder.
AVOIDED = {"GuidedSampler": "forbidden", "TextToImageSampler": "negative_prompt"}


def _discard_init_args(parser: Any, before: Any, now: Any) -> None:
    """Forget the settings of a class that another class replaces.

    jsonargparse keeps those whose names the new class knows as well: `--model.guidance NegativePrompting` would take
    the scale of the method in the configuration, whose scale means something else.
    """
    if before and "init_args" in before and before["class_path"].split(".")[-1] != now["class_path"].split(".")[-1]:
        before["init_args"] = Namespace()  # type: ignore[no-untyped-call]


def _leave_text(value: Any, **settings: Any) -> tuple[Any, Any]:
    """Leave the text that is given for a setting of a class to that setting's own type: `a: b` may be a prompt.

    jsonargparse reads it as YAML first, and hands on what it takes for a mapping or a number. Of a file that the text
    names it reads the content, which is right for a configuration and not for a checkpoint.
    """
    if isinstance(value, NestedArg) and isinstance(value.val, str) and value.key != "init_args":
        return value, None
    if isinstance(value, str) and Path(value).suffix not in (".yaml", ".yml", ".json"):
        settings["enable_path"] = False
    return parse_value_or_config(value, **settings)


_typehints.discard_init_args_on_class_path_change = _discard_init_args
_typehints.parse_value_or_config = _leave_text  # type: ignore[assignment, attr-defined]  # imported there


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, in place of the usage of a hundred options and a tree of alternatives."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a SettingError; see ``ArgumentParser.error``."""
        noise = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")
        lines = [line.strip(" -") for line in message.splitlines()]
        raise SettingError(" ".join(line for line in lines if line and not line.startswith(noise))) from ex


class DNGCLI(LightningCLI):
    """``dng fit | validate | test | predict``; see ``dng --help``."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self.words = list(sys.argv[1:] if args is None else args)
        super().__init__(
            args=self.words,
            parser_class=Parser,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            trainer_defaults={"callbacks": [callbacks.HParams()]},
            auto_configure_optimizers=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what ``main`` prepared from ``sys.argv``."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # main gives a list

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What goes besides the classes."""
        parser.add_argument("--weights", type=str | None, help="checkpoint whose weights a new training starts from")

    def _parse_ckpt_path(self) -> None:
        """Do not let hyper-parameters stored in a checkpoint overwrite the configuration and the command line."""

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint that cannot be one before anything is loaded."""
        self._check_ckpt_path()
        if self.subcommand in ("validate", "test") and not self._draws():
            self.save_config_callback = None  # the folder's config.yaml says how the model was trained
        self.data_of_open_settings = self._close_settings()

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """Choose the output folder, and log to TensorBoard there unless another logger is set."""
        given = self.config[self.subcommand].trainer
        if given.default_root_dir is None:
            given.default_root_dir = self._default_folder()
        folder = settings["default_root_dir"] = given.default_root_dir
        if given.logger is None:
            settings["logger"] = RunLogger(folder, name="", version="", default_hp_metric=False)
        trainer: Any = super().instantiate_trainer(**settings)
        for keeper in (keepers := self._keepers(trainer)):
            keeper.dirpath = keeper.dirpath or str(Path(folder, "checkpoints"))  # else it follows the logger
        if trainer.fast_dev_run:  # Lightning's own writes a last.ckpt all the same
            trainer.callbacks = [other for other in trainer.callbacks if other not in keepers]
        return trainer  # type: ignore[no-any-return]  # its callbacks are no typed attribute

    def after_instantiate_classes(self) -> None:
        """Refuse what cannot be, before anything is written."""
        if self.data_of_open_settings is not None:
            self.datamodule = self.data_of_open_settings  # it has looked at the images already
        if weights := self.config[self.subcommand].weights:
            if not isinstance(self.model, TrainedModule):
                raise SettingError(f"--weights is for trainings: use --model.checkpoint {weights}")
            self.model.start_from(weights)
        if self.config[self.subcommand].trainer.fast_dev_run:
            return
        folder = Path(self.trainer.default_root_dir)
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):  # only looked at: what fails later leaves no folder
            raise SettingError(f"cannot write to {folder}: name another --trainer.default_root_dir")
        for callback in self.trainer.callbacks if self.subcommand == "fit" else ():  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.GuidedSampling) and hasattr(self.datamodule, "seen_classes"):
                callback.check(self.model, self.datamodule)
        if others := self._holds_others(folder):
            resume = "resume it with --ckpt_path last, " if self.subcommand == "fit" else ""
            raise SettingError(
                f"{folder} holds {others}: {resume}name another --trainer.default_root_dir, or remove it"
            )

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command, and print what comes next; also where it was interrupted."""
        try:
            super()._run_subcommand(subcommand)
        except (KeyboardInterrupt, SystemExit):
            next_command.say(self, interrupted=True)
            raise
        next_command.say(self)

    def _keepers(self, trainer: Trainer) -> list[ModelCheckpoint]:
        return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]

    def _close_settings(self) -> data.base.ImageDataModule | None:
        """Choose what the configuration leaves open, and print it; the data that it was chosen for, if any was."""
        settings = self.config[self.subcommand]
        if not open_settings.is_open(settings):
            return None
        only_data = Namespace(data=settings.data)  # type: ignore[no-untyped-call]
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data")
        found = parser.instantiate_classes(only_data).data
        if not isinstance(found, data.base.ImageDataModule):
            raise SettingError("model.net has null, to be chosen for the images: set data to a data set of images")
        nets = ArgumentParser(exit_on_error=False)
        nets.add_subclass_arguments(torch.nn.Module, "net")

        def network(net: Namespace) -> torch.nn.Module:
            only_net = Namespace(net=net.clone())  # type: ignore[no-untyped-call]
            return nets.instantiate_classes(only_net).net  # type: ignore[no-any-return]

        rank_zero_info(open_settings.close(settings, found, network))
        self.config = self.parser.parse_object(self.config)
        return found

    def _check_ckpt_path(self) -> None:
        """Refuse a checkpoint to go on from that cannot be one, before anything is written."""
        settings = self.config[self.subcommand]
        if settings.ckpt_path in (None, "last", "hpc"):
            return
        if settings.ckpt_path == "best":
            raise SettingError("--ckpt_path best is known to the process that trained alone: name the file")
        if self._draws():
            raise SettingError(f"--ckpt_path is not for sampling: use --model.checkpoint {settings.ckpt_path}")
        path = resources.checkpoint(settings.ckpt_path)
        with reading(path, "a training"):
            if "pytorch-lightning_version" not in torch.load(path, map_location="cpu", weights_only=True):
                raise ValueError("Lightning did not write it")
        settings.ckpt_path = str(path)

    def _draws(self) -> bool:
        """Whether the model is a sampler rather than a training."""
        return self.config[self.subcommand].model.class_path.rsplit(".", 1)[-1] in AVOIDED

    def _default_folder(self) -> str:
        """samples/<checkpoint>-without-<forbidden>-<guidance>, results/<checkpoint>-without-<forbidden>, or logs.

        Where that holds what was made with other settings, a number is added.
        """
        model = self.config[self.subcommand].model
        avoided = AVOIDED.get(model.class_path.rsplit(".", 1)[-1])
        if self.subcommand not in RESULTS or not avoided:
            return "logs"
        forbidden = model.init_args[avoided]
        names = [file_name(name) for name in (forbidden if isinstance(forbidden, list) else [forbidden or "nothing"])]
        checkpoint = model.init_args.checkpoint
        name = resources.name_of(checkpoint if isinstance(checkpoint, str) else checkpoint.init_args.path)
        folder = f"results/{name}-without-{'-'.join(names) or 'nothing'}"
        if self.subcommand == "predict":
            guidance = model.init_args.guidance
            method = f"-{guidance.class_path.rsplit('.', 1)[-1]}" if guidance else ""
            folder = f"samples/{Path(folder).name}{method}"
        numbered = (f"{folder}-{number}" if number > 1 else folder for number in itertools.count(1))
        return next(name for name in numbered if not self._holds_others(Path(name)))

    def _holds_others(self, folder: Path) -> str:
        """What of other settings is there that going on would overwrite, or mix with; empty if there is nothing."""
        if not (self._draws() or self.subcommand == "fit"):
            return ""
        config = folder / "config.yaml"
        for command, (patterns, free) in RESULTS.items():
            held = next((path for pattern in patterns for path in folder.glob(pattern)), None)
            again = command == self.subcommand == "fit"
            if held is None or (again and self._goes_on(folder)) or not (again or config.exists()):
                continue
            now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]["model"]
            try:
                before = yaml.safe_load(config.read_text())["model"]
                for settings in (before, now):
                    fixed = {name: value for name, value in settings["init_args"].items() if name not in free}
                    settings["init_args"] = fixed
                different = difference(before, now, "model") or self._made_anew(folder)
            except (OSError, yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
                different = "its config.yaml is missing or damaged"  # a write that was interrupted, or another's file
            if different or again:
                settings = f"other model settings ({different})" if different else "these model settings"
                return f"{held.relative_to(folder)} made with {settings}"
        return ""

    def _goes_on(self, folder: Path) -> bool:
        """Whether a training resumes one whose checkpoints are in the folder, or where this one will have its own."""
        folders = [folder, *(Path(str(keeper.dirpath)) for keeper in self._keepers(self.trainer))]
        path = self.config[self.subcommand].ckpt_path
        if path in (None, "hpc"):  # on a SLURM cluster Lightning finds that one itself
            return any(folder.glob("hpc_ckpt_*.ckpt"))
        return any(
            any(place.glob("last*.ckpt")) if path == "last" else Path(path).resolve().is_relative_to(place.resolve())
            for place in folders
        )

    def _made_anew(self, folder: Path) -> str:
        """Which of the files that the settings name is another one now than what was drawn there was drawn with."""
        if not isinstance(self.model, ImageSampler):
            return ""
        before = inputs_of(folder)
        changed = [name for name, value in self._inputs_now.items() if before.get(name, value) != value]
        return f"the {changed[0]} was made anew since" if changed else ""

    @cached_property
    def _inputs_now(self) -> dict[str, str]:
        hashes: dict[str, str] = self.model.inputs(calibration=self.subcommand == "predict")
        return hashes
