"""The error for settings that the user can correct, and common checks of settings."""

import importlib
from collections.abc import Collection
from textwrap import shorten
from typing import Any

LARGEST = 3.4e38  # about the largest number in single precision, in which networks and guidance compute


class SettingError(ValueError):
    """A setting that the user can correct; the command line prints it as one line and exits with 2."""


def check_at_least(least: float, **settings: float | None) -> None:
    """Check that settings are finite and not below ``least``; None passes.

    Raises:
        SettingError: one is; the message names the first.
    """
    for name, value in settings.items():
        if value is not None and not least <= value <= LARGEST:
            finite = "" if isinstance(value, int) else " and finite"
            raise SettingError(f"{name} must be at least {least}{finite}; got {value}")


def check_in(interval: str, **settings: float | None) -> None:
    """Check that settings are in an interval such as ``"[0, 1)"`` or ``"(0, inf)"``; None passes.

    Raises:
        SettingError: one is not; the message names the first.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    excluded = {end for end, bracket in ((low, interval[0]), (high, interval[-1])) if bracket in "()"}
    for name, value in settings.items():
        if value is not None and (not low <= value <= min(high, LARGEST) or value in excluded):
            raise SettingError(f"{name} must be in {interval}; got {value}")


def check_one_of(choices: Collection[object], **settings: object) -> None:
    """Check that settings are among two or more ``choices``.

    Raises:
        SettingError: one is not; the message names the first.
    """
    for name, value in settings.items():
        if value not in choices:
            *others, last = map(str, choices)
            raise SettingError(f"{name} must be {', '.join(others)} or {last}; got {value}")


def require(library: str, user: str, extra: str) -> Any:
    """Import a library that an extra of the package installs.

    Args:
        library: module of the library.
        user: what needs the library, for the message.
        extra: name of the extra.

    Raises:
        SettingError: the library is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise SettingError(f"{user} needs {library}: pip install 'dng-lightning[{extra}]'") from error


def reason(error: Exception) -> str:
    """The first line of a library's error that does not end in a colon, shortened; the error's class if it is empty.

    Of an error that quotes a traceback, as TorchScript's do, it is the last line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if any(line.startswith("Traceback") for line in lines):
        lines = lines[-1:]
    return shorten(next((line for line in lines if not line.endswith(":")), lines[0]), 200, placeholder=" ...")
