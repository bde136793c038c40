"""The one error that is the user's to mend."""


class SettingError(ValueError):
    """A setting the user can mend; the command line prints it as one line and exits with 2."""
