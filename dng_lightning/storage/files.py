"""Names of files, and atomic writes."""

import os
import re
from pathlib import Path


def file_name(text: str | int) -> str:
    """A class, a method or a prompt as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", str(text))[:60]


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: to a temporary file that is then renamed."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
