"""Checks of callbacks: the type of the module, and dry runs."""

from typing import TypeVar

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dng_lightning.errors import SettingError

Module = TypeVar("Module", bound=LightningModule)


def expect(kind: type[Module], module: LightningModule, callback: Callback) -> Module:
    """The module, if it is of the ``kind`` that the callback requires.

    Raises:
        SettingError: the module is of another kind.
    """
    if not isinstance(module, kind):
        expected, found = kind.__name__, type(module).__name__
        raise SettingError(f"{type(callback).__name__} goes with a {expected}; the model is a {found}")
    return module


def is_dry_run(trainer: Trainer, callback: Callback) -> bool:
    """Whether ``fast_dev_run`` is set; ``callback`` is then removed from the trainer, as a dry run writes nothing."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by the trainer's debugging connector
        others = [other for other in trainer.callbacks if other is not callback]  # type: ignore[attr-defined]
        trainer.callbacks = others  # type: ignore[attr-defined]  # a new list, as the trainer iterates over the old one
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
