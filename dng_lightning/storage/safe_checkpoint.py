"""Checkpoints as ``model.safetensors``: the weights, and plain data as JSON in the header.

The format contains no code, and other libraries can read the weights. The plain data are the hyper-parameters, and the
shape and classes of the training images.
"""

import contextlib
import io
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dng_lightning.storage.files import check_is_checkpoint, write_whole

SUFFIX = ".safetensors"
PLAIN = ("hyper_parameters", "trained_on", "pytorch-lightning_version")

PREFIXES = r"^module\.|(?<![^.])_orig_mod\."


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write the weights and plain data of a checkpoint atomically.

    Raises:
        TypeError: a hyper-parameter is not plain data.
    """
    metadata = {name: json.dumps(checkpoint[name], default=dict) for name in PLAIN if name in checkpoint}
    write_whole(path, save(checkpoint["state_dict"], {"format": "pt"} | metadata))


def write_ckpt(content: Any, path: Path) -> None:
    """Write what ``torch.save`` writes, atomically."""
    file = io.BytesIO()
    torch.save(content, file)
    write_whole(path, file.getbuffer())


def read(path: Path) -> dict[str, Any]:
    """Read a file of ``write``, or a ``.ckpt``: only weights and plain data, on the CPU."""
    check_is_checkpoint(path)
    if path.suffix == SUFFIX:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
        content = {name: json.loads(metadata[name]) for name in PLAIN if name in metadata}
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content["state_dict"]
    # the prefixes of a network that was compiled, or trained on several devices
    return content | {"state_dict": {re.sub(PREFIXES, "", name): weight for name, weight in weights.items()}}


def is_own(path: Path) -> bool:
    """Whether a file is one of ``write``."""
    with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:
        return "hyper_parameters" in (file.metadata() or {})
    return False


def as_ckpt(path: Path) -> IO[bytes]:
    """The checkpoint as a ``.ckpt`` in memory, of whatever version of Lightning, which migrates no file of ours.

    Raises:
        ValueError: it holds weights alone.
    """
    content, file = read(path), io.BytesIO()
    if "hyper_parameters" not in content:
        raise ValueError("it holds weights without the settings of their network")
    torch.save(content | {"pytorch-lightning_version": version("lightning")}, file)
    file.seek(0)
    return file
