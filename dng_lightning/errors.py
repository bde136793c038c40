"""The one error that is the user's to mend, and the checks of settings that many need."""


class SettingError(ValueError):
    """A setting the user can mend; the command line prints it as one line and exits with 2."""


def check_at_least_0(**settings: float) -> None:
    """Refuse settings that are negative or not finite.

    Raises:
        SettingError: naming the first of them.
    """
    for name, value in settings.items():
        if not 0 <= value < float("inf"):
            raise SettingError(f"{name} must be at least 0 and finite; got {value}")


def check_0_to_1(**settings: float) -> None:
    """Refuse settings that are not between 0 and 1, both included.

    Raises:
        SettingError: naming the first of them.
    """
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise SettingError(f"{name} must be between 0 and 1; got {value}")


def reason(error: Exception) -> str:
    """The first line of what went wrong in a library, or the kind of error where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
