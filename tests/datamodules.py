"""Datamodules in tests."""

from dng_lightning.data.base import ImageDataModule


def ready(data: ImageDataModule) -> ImageDataModule:
    """The datamodule after its preparation and setup."""
    data.prepare_data()
    data.setup()
    return data
