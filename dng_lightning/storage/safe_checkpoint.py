"""Checkpoints as ``model.safetensors``: the weights, and in the header what is plain data besides.

The format holds no code, and other libraries read the weights. The hyper-parameters and the facts about the data are
JSON in the header's metadata.
"""

import io
import json
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SUFFIX = ".safetensors"
PLAIN = ("hyper_parameters", "trained_on", "pytorch-lightning_version")


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write the weights and plain data of a checkpoint, aside first.

    Raises:
        TypeError: a hyper-parameter is no plain data.
    """
    metadata = {name: json.dumps(checkpoint[name], default=dict) for name in PLAIN if name in checkpoint}
    part = path.with_name(f"{path.name}.part")
    save_file(checkpoint["state_dict"], part, {"format": "pt"} | metadata)
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """The checkpoint that ``write`` wrote, or a ``.ckpt``; weights and plain data alone, on the CPU."""
    if path.suffix != SUFFIX:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
    return {"state_dict": weights} | {name: json.loads(metadata[name]) for name in PLAIN if name in metadata}


def as_ckpt(path: Path) -> Path | IO[bytes]:
    """What Lightning reads: a ``.ckpt`` itself, another file as one in memory."""
    if path.suffix != SUFFIX:
        return path
    file = io.BytesIO()
    torch.save(read(path), file)
    file.seek(0)
    return file
