"""Arrays in files that are written through memory."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def mapped_array(path: Path, dtype: np.dtype[Any], shape: Sequence[int]) -> np.memmap:
    """A new ``.npy`` file that is written through memory.

    Its space is reserved at once, since a disk that is full at a later write would end the process (SIGBUS).

    Raises:
        OSError: there is no space for it.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, tuple(shape))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                error.filename = str(path)
                raise
    return array
