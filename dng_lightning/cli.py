"""The command line: a stock LightningCLI over the package's modules, datamodules and callbacks."""

import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from dng_lightning import callbacks, data, guidance, modules, networks, schedule
from dng_lightning.errors import SettingError

# What is imported can be named in a configuration by its class name alone.
__all__ = ["DNGCLI", "callbacks", "data", "guidance", "modules", "networks", "schedule"]


class DNGCLI(LightningCLI):
    """``dng fit | validate | test | predict``; see ``dng --help``."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(
            args=args if args is None else list(args),
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what ``main`` prepared from ``sys.argv``."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do not let hyper-parameters stored in a checkpoint overwrite the configuration and the command line."""

    def before_instantiate_classes(self) -> None:
        """Settle the folder that everything is written to, and log to TensorBoard there unless told otherwise."""
        trainer = self.config[self.subcommand].trainer
        if trainer.default_root_dir is None:
            trainer.default_root_dir = self._samples_folder() if self.subcommand == "predict" else "logs"
        if trainer.logger is None:
            trainer.logger = {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": trainer.default_root_dir, "name": "", "version": "", "default_hp_metric": False},
            }
        self.config = self.parser.parse_object(self.config)

    def after_instantiate_classes(self) -> None:
        """Refuse a folder that cannot be written to, or that holds images made with other settings."""
        folder = Path(self.config[self.subcommand].trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError
        except OSError as error:
            raise SettingError(f"cannot write to {folder}: name another --trainer.default_root_dir") from error
        if self.subcommand == "predict":
            self._refuse_other_settings(folder)

    def _samples_folder(self) -> str:
        """samples/<checkpoint>-without-<forbidden>-<guidance>, from the settings of a GuidedSampler."""
        settings = self.config.predict.model.init_args
        if "forbidden" not in settings:
            return "samples"
        forbidden = settings.forbidden if isinstance(settings.forbidden, list) else [settings.forbidden]
        method = settings.guidance.class_path.rsplit(".", 1)[-1] if settings.guidance else "DynamicNegativeGuidance"
        return f"samples/{Path(settings.checkpoint).stem}-without-{'-'.join(map(str, forbidden))}-{method}"

    def _refuse_other_settings(self, folder: Path) -> None:
        """Continuing a prediction must not mix images of two models or methods in one folder."""
        if not (folder / "config.yaml").exists() or not (folder / "records").exists():
            return
        before = yaml.safe_load((folder / "config.yaml").read_text()).get("model")
        now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))["predict"]["model"]
        if before != now:
            raise SettingError(
                f"{folder} holds images made with other model settings (see its config.yaml): "
                "name another --trainer.default_root_dir, or remove it"
            )
