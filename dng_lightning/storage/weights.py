"""Reads weights of other libraries' networks without running code, and loads them into a network."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dng_lightning.errors import SettingError, reason
from dng_lightning.storage.files import check_is_checkpoint

NESTED = ("state_dict", "model_state_dict", "model")  # keys of the network's weights in checkpoints of a training


def read(path: str | Path) -> dict[str, Any]:
    """The content of a file of safetensors or ``torch.save``, on the CPU.

    Raises:
        SettingError: the file is missing, contains code, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingError(f"no file of weights at {path.absolute()}")
    check_is_checkpoint(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SettingError(f"{path} is refused, because it contains code; {_conversion(path)}") from error
    except Exception as error:  # a foreign file can fail in any way
        raise SettingError(f"{path} holds no weights: {reason(error)}") from error
    if not isinstance(content, Mapping):
        raise SettingError(f"{path} holds no weights but a {type(content).__name__}")
    return dict(content)


def _conversion(path: Path) -> str:
    """How to convert a network of ``torch.save``, or a pickle of EDM: short, as the command line cuts long errors."""
    library, net = "torch", f"torch.load('{path}', weights_only=False)"
    if not is_zipfile(path):
        library, net = "pickle", f"pickle.load(open('{path}', 'rb'))['ema']"
    return (
        f"if you trust it, convert it once, where its network's code is: import {library}; "
        f"from safetensors.torch import save_file; net = {net}; "
        "save_file({k: v.contiguous() for k, v in net.state_dict().items()}, 'net.safetensors')"
    )


def state_dict(path: str | Path) -> dict[str, Tensor]:
    """The network's weights in a file, see ``read``, without the name prefix of data-parallel training.

    Raises:
        SettingError: there are none.
    """
    content = read(path)
    for name in NESTED:
        if isinstance(content.get(name), Mapping):
            content = dict(content[name])
            break
    weights = {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise SettingError(f"{path} holds no weights: it has {', '.join(map(str, list(content)[:5])) or 'nothing'}")
    return weights


def fit(net: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``weights`` into a network; all names must match.

    Args:
        net: the network.
        weights: the state dict.
        source: origin of the weights, for the message.

    Raises:
        SettingError: the weights belong to another network.
    """
    try:
        net.load_state_dict(dict(weights))
    except RuntimeError as error:
        details = " ".join(str(error).split())
        kind = type(net).__name__
        raise SettingError(f"{source} holds weights of another network than this {kind}: {details[:300]}") from error
