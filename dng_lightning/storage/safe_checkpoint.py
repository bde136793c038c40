"""Checkpoints as ``model.safetensors``: the weights, and plain data as JSON in the header.

The format contains no code, and other libraries can read the weights. The plain data are the hyper-parameters, and the
shape and classes of the training images.
"""

import io
import json
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from dng_lightning.storage.files import write_whole

SUFFIX = ".safetensors"
PLAIN = ("hyper_parameters", "trained_on", "pytorch-lightning_version")


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
    if path.suffix != SUFFIX:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
    return {"state_dict": weights} | {name: json.loads(metadata[name]) for name in PLAIN if name in metadata}


def as_ckpt(path: Path) -> Path | IO[bytes]:
    """A checkpoint that Lightning can read: a ``.ckpt`` itself, or a ``.ckpt`` in memory for another file."""
    if path.suffix != SUFFIX:
        return path
    file = io.BytesIO()
    torch.save(read(path), file)
    file.seek(0)
    return file
