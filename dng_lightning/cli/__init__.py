"""The command line ``dng``."""

from dng_lightning.cli.dng_cli import DNGCLI

__all__ = ["DNGCLI"]
