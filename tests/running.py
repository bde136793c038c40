"""What the tests that run the command line share."""

import subprocess
from collections.abc import Callable

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]

Dng = Callable[..., None]
DngProcess = Callable[..., "subprocess.CompletedProcess[str]"]
