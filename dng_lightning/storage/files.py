"""Names of files, and atomic writes."""

import os
import re
from pathlib import Path

import yaml

from dng_lightning.errors import SettingError

PART = ".dng-part"  # ends the name of a temporary file
MOST_NODES = 100_000  # mappings, lists and values of a configuration; the largest that ships has some hundreds


def file_name(text: str | int) -> str:
    """A class, a method or a prompt as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", str(text))[:60]


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: to a temporary file that is then renamed.

    Raises:
        OSError: it cannot be written; what was there before is intact.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # the system does not name the file that a full disk cuts off
        raise
    finally:
        part.unlink(missing_ok=True)


def check_is_checkpoint(path: Path) -> None:
    """Refuse what downloads leave in the place of a file of weights.

    Raises:
        SettingError: the file is empty, a pointer of Git LFS, or a web page.
    """
    with path.open("rb") as file:
        start = file.read(100).lstrip().lower()
    pointer, page = "a pointer of Git LFS: run git lfs pull", "a web page, not the file itself"
    for first, kind in ((b"version https://git-lfs", pointer), (b"<", page)):
        if start.startswith(first):
            raise SettingError(f"{path} is {kind}")
    if not start:
        raise SettingError(f"{path} is empty")


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of ``write_whole`` that killed processes have left in a folder."""
    for part in folder.rglob(f"*{PART}"):
        part.unlink(missing_ok=True)


def check_yaml(path: Path) -> None:
    """Refuse what a parser of settings cannot read, or not in finite time; its syntax is left to the parser.

    Raises:
        SettingError: it is no text or no mapping, is nested too deeply, sets a key twice, or its aliases do not end.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise SettingError("it holds no settings, as in `model: {...}`")
        if _nodes(root, {}) > MOST_NODES:
            raise SettingError(f"its aliases expand to more than {MOST_NODES:,} values")
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is no text in UTF-8") from error
    except RecursionError as error:
        raise SettingError(f"{path} is nested too deeply") from error
    except yaml.YAMLError:
        return


def _nodes(node: yaml.Node, counted: dict[int, float]) -> float:
    """The number of nodes with all aliases expanded; infinite for an alias inside its own anchor."""
    if id(node) not in counted:
        counted[id(node)] = float("inf")
        keys = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise SettingError(f"{twice[0]} is set twice in the mapping of line {node.start_mark.line + 1}")
        entries = [] if isinstance(node, yaml.ScalarNode) else node.value
        inside = [part for entry in entries for part in (entry if isinstance(entry, tuple) else (entry,))]
        counted[id(node)] = 1 + sum(_nodes(part, counted) for part in inside)
    return counted[id(node)]
