"""Checks that a callback is used with the module and data that it needs."""

from typing import TypeVar

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dng_lightning.data.seeds import Seeds
from dng_lightning.errors import SettingError
from dng_lightning.modules.image_sampler import ImageSampler

Module = TypeVar("Module", bound=LightningModule)


def expect(kind: type[Module], module: LightningModule, callback: Callback) -> Module:
    """The module, if it is of the ``kind`` that the callback is for.

    Raises:
        SettingError: it is not.
    """
    if not isinstance(module, kind):
        expected, found = kind.__name__, type(module).__name__
        raise SettingError(f"{type(callback).__name__} goes with a {expected}; the model is a {found}")
    return module


def sampler_of(module: LightningModule, callback: Callback) -> ImageSampler:
    """The module, if it draws images.

    Raises:
        SettingError: it does not.
    """
    if not isinstance(module, ImageSampler):
        raise SettingError(f"{type(callback).__name__} goes with a GuidedSampler; the model is {type(module).__name__}")
    return module


def seeds_of(trainer: Trainer, callback: Callback) -> Seeds:
    """The trainer's data, if they are seeds.

    Raises:
        SettingError: they are not.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, Seeds):
        raise SettingError(f"{type(callback).__name__} goes with data Seeds; they are {type(data).__name__}")
    return data


def claim_draws(module: ImageSampler, callback: Callback) -> None:
    """Let one callback alone decide what ``dng test`` draws.

    Raises:
        SettingError: another one does.
    """
    owner = module.draws_owner or callback
    if owner is not callback:
        names = f"{type(owner).__name__} and {type(callback).__name__}"
        raise SettingError(f"{names} both decide what dng test draws: keep one of them in trainer.callbacks")
    module.draws_owner = callback


def is_dry_run(trainer: Trainer, callback: Callback) -> bool:
    """Whether ``fast_dev_run`` is set, in which nothing is written; a callback that writes is then taken out."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by the trainer's debugging connector
        others = [other for other in trainer.callbacks if other is not callback]  # type: ignore[attr-defined]
        trainer.callbacks = others  # type: ignore[attr-defined]  # a new list, as hooks are called along the old one
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
