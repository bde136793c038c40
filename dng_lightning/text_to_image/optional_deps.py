"""The libraries of the extra ``text-to-image``, imported when they are needed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dng_lightning.errors import require

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")  # those that are known here


def libraries() -> Any:
    """Diffusers, with transformers beside it.

    Raises:
        SettingError: one of them is not installed.
    """
    require("transformers", "text-to-image", "text-to-image")  # diffusers' text encoders are of its classes
    return require("diffusers", "text-to-image", "text-to-image")


@contextmanager
def quiet() -> Iterator[None]:
    """Without a progress bar for each part that is read, and what the libraries say of long prompts."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for library in (diffusers, transformers):
            library.utils.logging.enable_progress_bar()
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def inform(message: str) -> None:
    """Tell the user something, once for all processes."""
    from lightning.pytorch.utilities import rank_zero_info  # imported here, for it takes seconds

    rank_zero_info(message)
