"""The libraries of the extra ``text-to-image``, imported when they are needed, and the precision of their networks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

from dng_lightning.errors import check_one_of, require

Precision = Literal["fp32", "bf16"]


def dtype_of(precision: Precision) -> torch.dtype:
    """The dtype of a precision.

    Raises:
        SettingError: there is no such precision.
    """
    check_one_of(get_args(Precision), precision=precision)
    return torch.float32 if precision == "fp32" else torch.bfloat16


def libraries() -> tuple[Any, Any]:
    """Diffusers and transformers, which has its text encoders.

    Raises:
        SettingError: one of them is not installed.
    """
    extra = "text-to-image"
    return require("diffusers", extra, extra), require("transformers", extra, extra)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and warnings."""
    logs = [library.utils.logging for library in libraries()]
    levels = [log.get_verbosity() for log in logs]
    try:
        for log in logs:
            log.disable_progress_bar()
            log.set_verbosity_error()
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.enable_progress_bar()
            log.set_verbosity(level)


def inform(message: str) -> None:
    """Tell the user something, once for all processes."""
    from lightning.pytorch.utilities import rank_zero_info  # imported here, for it takes seconds

    rank_zero_info(message)
