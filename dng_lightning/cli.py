"""The command line: a stock LightningCLI over the package's modules, datamodules and callbacks."""

from collections.abc import Sequence

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from dng_lightning import callbacks, data, guidance, modules, networks, schedule

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
        """Log to TensorBoard right below ``default_root_dir``, beside the checkpoints, if no logger is named."""
        trainer = self.config[self.subcommand].trainer
        if trainer.logger is None and self.subcommand != "predict":
            folder = {"save_dir": trainer.default_root_dir or "logs", "name": "", "version": ""}
            trainer.logger = {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {**folder, "default_hp_metric": False},
            }
            self.config = self.parser.parse_object(self.config)
