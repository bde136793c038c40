"""The command line: a stock LightningCLI over the package's modules, datamodules and callbacks."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, _typehints
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from dng_lightning import callbacks, data, guidance, modules, networks, open_settings, posterior, schedule, shipped
from dng_lightning.errors import SettingError
from dng_lightning.files import file_name
from dng_lightning.modules.trained import reading
from dng_lightning.text_to_image import autoencoder, observers, sampler, training, vision_language

# What is imported can be named in a configuration by its class name alone.
NAMED = callbacks, data, guidance, modules, networks, posterior, schedule
NAMED_IN_TEXT_TO_IMAGE = autoencoder, observers, sampler, training, vision_language

# For each command what it continues in its folder, and which settings of the model may differ when it does.
RESULTS = {
    "predict": ("records", ()),
    "test": ("results.csv", ("guidance", "guidances", "steps", "observer", "noisy_classifier", "retrained", "compile")),
}

# What each module that draws is told to avoid, for the name of its folder.
AVOIDED = {"GuidedSampler": "forbidden", "TextToImageSampler": "negative_prompt"}


def _discard_init_args(parser: Any, before: Any, now: Any) -> None:
    """Forget the settings of a class that another class replaces.

    jsonargparse keeps those whose names the new class knows as well: `--model.guidance NegativePrompting` would take
    the scale of the method in the configuration, whose scale means something else.
    """
    if before and "init_args" in before and before["class_path"].split(".")[-1] != now["class_path"].split(".")[-1]:
        before["init_args"] = Namespace()  # type: ignore[no-untyped-call]


_typehints.discard_init_args_on_class_path_change = _discard_init_args


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
        super().__init__(
            args=args if args is None else list(args),
            parser_class=Parser,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [callbacks.Dashboard()]},
            auto_configure_optimizers=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what ``main`` prepared from ``sys.argv``."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # main gives a list

    def _parse_ckpt_path(self) -> None:
        """Do not let hyper-parameters stored in a checkpoint overwrite the configuration and the command line."""

    def before_instantiate_classes(self) -> None:
        """Settle the folder that everything is written to, and log to TensorBoard there unless told otherwise."""
        self._check_ckpt_path()
        if self.subcommand in ("validate", "test") and not self._draws():
            self.save_config_callback = None  # the folder's config.yaml says how the model was trained
        trainer = self.config[self.subcommand].trainer
        if trainer.default_root_dir is None:
            trainer.default_root_dir = self._default_folder()
        if trainer.logger is None:
            here = {"save_dir": trainer.default_root_dir, "name": "", "version": "", "default_hp_metric": False}
            trainer.logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": here}
        self.data_of_open_settings = self._close_settings()
        self.config = self.parser.parse_object(self.config)

    def after_instantiate_classes(self) -> None:
        """Refuse what cannot be, before anything is written."""
        if self.data_of_open_settings is not None:
            self.datamodule = self.data_of_open_settings  # it has looked at the images already
        folder = Path(self.config[self.subcommand].trainer.default_root_dir)
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):  # only looked at: what fails later leaves no folder
            raise SettingError(f"cannot write to {folder}: name another --trainer.default_root_dir")
        for callback in self.trainer.callbacks if self.subcommand == "fit" else ():  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.GuidedSampling) and hasattr(self.datamodule, "seen_classes"):
                callback.check(self.model, self.datamodule)
        if self._holds_others(folder):
            raise SettingError(
                f"{folder} holds {RESULTS[str(self.subcommand)][0]} made with other model settings (see its "
                "config.yaml), or that file is damaged: name another --trainer.default_root_dir, or remove it"
            )

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
        rank_zero_info(open_settings.close(settings, found))
        return found

    def _check_ckpt_path(self) -> None:
        """Refuse a checkpoint to go on from that cannot be one, before anything is written."""
        settings = self.config[self.subcommand]
        if settings.ckpt_path in (None, "last", "best", "hpc"):
            return
        if self._draws():
            raise SettingError(f"--ckpt_path is not for sampling: use --model.checkpoint {settings.ckpt_path}")
        path = shipped.checkpoint(settings.ckpt_path)
        with reading(path, "a training"):
            torch.load(path, map_location="cpu", weights_only=True)
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
        folder = f"results/{shipped.name_of(model.init_args.checkpoint)}-without-{'-'.join(names)}"
        if self.subcommand == "predict":
            guidance = model.init_args.guidance
            method = f"-{guidance.class_path.rsplit('.', 1)[-1]}" if guidance else ""
            folder = f"samples/{Path(folder).name}{method}"
        numbered = (f"{folder}-{number}" if number > 1 else folder for number in itertools.count(1))
        return next(name for name in numbered if not self._holds_others(Path(name)))

    def _holds_others(self, folder: Path) -> bool:
        """Whether going on there would, or could, mix images or results of two models or methods."""
        result, free = RESULTS.get(self.subcommand or "", ("", ()))
        if not result or not (folder / "config.yaml").exists() or not (folder / result).exists():
            return False
        now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]["model"]
        try:
            before = yaml.safe_load((folder / "config.yaml").read_text())["model"]
            for settings in (before, now):
                for name in free:
                    settings["init_args"].pop(name, None)
        except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
            return True  # a write that was interrupted, or another's file
        return bool(before != now)
