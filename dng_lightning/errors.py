"""The error for settings that the user can correct, and common checks of settings."""

import importlib
from textwrap import shorten
from typing import Any


class SettingError(ValueError):
    """A setting that the user can correct; the command line prints it as one line and exits with 2."""


def check_at_least(least: float, **settings: float | None) -> None:
    """Refuse settings below ``least`` or not finite; None passes.

    Raises:
        SettingError: naming the first of them.
    """
    for name, value in settings.items():
        if value is not None and not least <= value < float("inf"):
            finite = "" if isinstance(value, int) else " and finite"
            raise SettingError(f"{name} must be at least {least}{finite}; got {value}")


def check_at_least_0(**settings: float) -> None:
    """Refuse settings that are negative or not finite; see ``check_at_least``."""
    check_at_least(0, **settings)


def check_0_to_1(**settings: float) -> None:
    """Refuse settings that are not between 0 and 1, both included.

    Raises:
        SettingError: naming the first of them.
    """
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise SettingError(f"{name} must be between 0 and 1; got {value}")


def check_in(interval: str, **settings: float | None) -> None:
    """Refuse settings outside an interval such as ``"[0, 1)"`` or ``"(0, inf)"``; None passes.

    Raises:
        SettingError: naming the first of them.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    excluded = {end for end, bracket in ((low, interval[0]), (high, interval[-1])) if bracket in "()"}
    for name, value in settings.items():
        if value is not None and (not low <= value <= high or value in excluded):
            raise SettingError(f"{name} must be in {interval}; got {value}")


def require(library: str, user: str, extra: str) -> Any:
    """Import a library that only an extra of the package installs.

    Args:
        library: its module.
        user: what needs it, for the message.
        extra: of ``dng-lightning``.

    Raises:
        SettingError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise SettingError(f"{user} needs {library}: pip install 'dng-lightning[{extra}]'") from error


def reason(error: Exception) -> str:
    """The first line of a library's error that does not end in a colon, shortened; without one, the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shorten(next((line for line in lines if not line.endswith(":")), lines[0]), 200, placeholder=" ...")
