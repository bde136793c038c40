"""The command line: a stock LightningCLI over the package's modules, datamodules and callbacks."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info

from dng_lightning import callbacks, data, guidance, modules, networks, posterior, schedule
from dng_lightning.cli import next_command, open_settings
from dng_lightning.cli.interruption import Interruption
from dng_lightning.cli.output_folder import AVOIDED, OutputFolder
from dng_lightning.cli.parser import Parser
from dng_lightning.cli.saved_config import SaveConfig
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.evaluation.tensorboard import RunLogger
from dng_lightning.modules.base_module import TrainedModule, reading
from dng_lightning.modules.resuming import WEIGHTS_ALONE
from dng_lightning.storage import resources
from dng_lightning.storage.checkpoint_io import AtomicCheckpointIO
from dng_lightning.storage.files import check_is_checkpoint
from dng_lightning.text_to_image import observers, pipeline_sampler, sampler, vision_language

# Configurations can name imported classes without their module; ``modules`` imports judges and pretrained.
NAMED = callbacks, data, guidance, modules, networks, posterior, schedule
NAMED_IN_TEXT_TO_IMAGE = observers, pipeline_sampler, sampler, vision_language


class DNGCLI(LightningCLI):
    """``dng fit | validate | test | predict``; see ``dng --help``."""

    def __init__(self, args: list[str], words: Sequence[str]) -> None:
        self.words = list(words)  # as the user gave them
        super().__init__(
            args=args,
            parser_class=Parser,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            trainer_defaults={"callbacks": [callbacks.HParams()]},
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # of a static method
        """The command that is called alone, if there is one of this name: each has a parser, which takes time."""
        every = super().subcommands()
        return {name: skipped for name, skipped in every.items() if name == self.words[0]} or every

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments that ``main`` prepared; ``--print_shtab bash`` prints a completion script."""
        if self.words[:1] == ["--print_shtab"] and hasattr(parser, "get_completion_script"):  # jsonargparse 4.48
            shells, shell = require("shtab", "--print_shtab", "completion").SUPPORTED_SHELLS, " ".join(self.words[1:])
            if shell not in shells:
                raise SettingError(f"--print_shtab {shell}: give {', '.join(shells)}")
            print(parser.get_completion_script(f"shtab-{shell}"))
            sys.exit()
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # main gives a list

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments that are not settings of classes."""
        parser.add_argument("--weights", type=str | None, help="checkpoint whose weights a new training starts from")

    def _parse_ckpt_path(self) -> None:
        """Do not let hyper-parameters stored in a checkpoint overwrite the configuration and the command line."""

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise SettingError(f"seed_everything: {error}") from error

    def before_instantiate_classes(self) -> None:
        """Check ``ckpt_path`` before anything is loaded, and choose the open settings."""
        self._check_ckpt_path()
        if self.subcommand in ("validate", "test") and not self.is_sampling:
            self.save_config_callback = None  # keep the config.yaml of the training
            if not (self.config[self.subcommand].ckpt_path or self.config[self.subcommand].weights):
                rank_zero_info("no --ckpt_path: these are the weights that the network starts with")
        self.data_of_open_settings = self._close_settings()

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """Choose the output folder, and log to TensorBoard there unless another logger is set."""
        given = self.config[self.subcommand].trainer
        if given.default_root_dir is None:
            given.default_root_dir = OutputFolder(self).default()
        folder = settings["default_root_dir"] = str(given.default_root_dir)
        if "://" in folder or "\0" in folder:  # Lightning knows addresses, but the files here are local
            raise SettingError(f"trainer.default_root_dir {folder!r} is no folder of this machine: give one")
        if given.logger is None:
            settings["logger"] = RunLogger(folder, name="", version="", default_hp_metric=False)
        try:
            trainer: Any = super().instantiate_trainer(**settings)
        except SettingError:
            raise
        except Exception as error:  # Lightning refuses devices, strategies and nodes in many ways
            raise SettingError(f"trainer: {reason(error)}") from error
        is_launched = getattr(trainer.strategy, "_start_method", "popen") == "popen"  # not forked, nor spawned
        if not (isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy) and is_launched):
            raise SettingError(f"trainer.strategy {given.strategy} is not supported: give auto or ddp")
        for callback in (own := self.model_checkpoints(trainer)):
            callback.dirpath = callback.dirpath or str(Path(folder, "checkpoints"))  # else it follows the logger
        if trainer.fast_dev_run:  # Lightning's own writes a last.ckpt all the same
            trainer.callbacks = [other for other in trainer.callbacks if other not in own]
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.interruption = Interruption()
        trainer.callbacks.append(self.interruption)
        return trainer  # type: ignore[no-any-return]  # its callbacks are no typed attribute

    def after_instantiate_classes(self) -> None:
        """Check the settings before anything is written."""
        if self.subcommand == "predict" and isinstance(self.model, TrainedModule):
            raise SettingError("dng predict samples from a trained model: name it with --model.checkpoint")
        present = self.trainer.callbacks  # type: ignore[attr-defined]
        if self.subcommand == "predict" and not any(isinstance(one, callbacks.ImageWriter) for one in present):
            rank_zero_info("no ImageWriter in trainer.callbacks writes the images")
        if self.data_of_open_settings is not None:
            self.datamodule = self.data_of_open_settings  # it has read the images already
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
        OutputFolder(self).check(folder)
        if self.config[self.subcommand].ckpt_path == "last":
            places = [Path(str(callback.dirpath)) for callback in self.model_checkpoints()]
            found = [path for place in places for path in place.glob("last*.ckpt")]
            for path in found:
                _check_resumable(path, self.subcommand == "fit")
            if not found and self.subcommand != "fit":  # which starts anew
                raise SettingError(f"--ckpt_path last: there is none in {folder}: name the file, or train first")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command and print the next one, also after an interruption."""
        with self.interruption.listening(self.trainer):
            try:
                super()._run_subcommand(subcommand)
            except (KeyboardInterrupt, SystemExit):
                next_command.say(self, interrupted=True)
                raise
            except SettingError:
                for logger in self.trainer.loggers if subcommand == "fit" else ():
                    if isinstance(logger, RunLogger):
                        logger.discard()  # keeps what was logged
                raise
            next_command.say(self)

    def model_checkpoints(self, trainer: Trainer | None = None) -> list[ModelCheckpoint]:
        """The callbacks that write the checkpoints of a training."""
        callbacks = (trainer or self.trainer).checkpoint_callbacks
        return [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]

    @property
    def is_sampling(self) -> bool:
        """Whether the model is a sampler, not a trained module."""
        return self.config[self.subcommand].model.class_path.rsplit(".", 1)[-1] in AVOIDED

    def _close_settings(self) -> data.base.ImageDataModule | None:
        """Choose and print the open settings; the datamodule of the choice, None without open settings."""
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
        """Check the checkpoint of a resumed training.

        Raises:
            SettingError: the checkpoint cannot be resumed from.
        """
        settings = self.config[self.subcommand]
        if settings.ckpt_path is not None and self.is_sampling:
            raise SettingError(f"--ckpt_path is not for sampling: use --model.checkpoint {settings.ckpt_path}")
        if settings.ckpt_path in (None, "last", "hpc"):
            return
        if settings.ckpt_path == "best":
            raise SettingError("--ckpt_path best is known to the process that trained alone: name the file")
        path = resources.checkpoint(settings.ckpt_path)
        _check_resumable(path, self.subcommand == "fit")
        settings.ckpt_path = str(path)


def _check_resumable(path: Path, trains: bool) -> None:
    with reading(path, "a training"):
        check_is_checkpoint(path)
        if "pytorch-lightning_version" not in (content := torch.load(path, map_location="cpu", weights_only=True)):
            raise ValueError("Lightning did not write it")
        if trains and "optimizer_states" not in content:
            raise SettingError(WEIGHTS_ALONE)
