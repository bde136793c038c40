"""The types of the fixtures that run the command line."""

import subprocess
from collections.abc import Callable

Dng = Callable[..., None]
DngProcess = Callable[..., "subprocess.CompletedProcess[str]"]
