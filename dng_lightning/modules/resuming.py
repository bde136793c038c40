"""What a resumed training takes from its checkpoint, and what from its own settings."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dng_lightning.errors import SettingError

PLATEAU = {"best", "cooldown_counter", "num_bad_epochs"}  # what a ReduceLROnPlateau has found out


def keep_settings(is_plateau: bool, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser without its settings, which a resumed run has its own of.

    Args:
        is_plateau: keep the rate that a ``ReduceLROnPlateau`` has come to from the same start.
        optimizer: that is to take the state.
        state: of a checkpoint.

    Raises:
        SettingError: it is the state of another kind of optimiser.
    """
    groups = []
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=False):
        missing = [n for n, v in optimizer.defaults.items() if v not in (None, False) and n not in saved]
        if missing:
            raise SettingError(
                f"the checkpoint's optimizer has no {missing[0]}: go on with the optimizer of its training, or start a "
                "new run from its weights with --weights"
            )
        own = {name: value for name, value in group.items() if name != "params"}
        if is_plateau and saved.get("initial_lr", own["initial_lr"]) == own["initial_lr"]:
            own["lr"] = saved["lr"]
        groups.append(own | {"params": saved["params"]})
    return state | {"param_groups": groups}


def check_same_network(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse the weights of another network.

    Args:
        stored: in a checkpoint.
        own: of the network that goes on.

    Raises:
        SettingError: naming a weight that differs.
    """
    for name in {**own, **stored}:
        found, expected = (tuple(state[name].shape) if name in state else "missing" for state in (stored, own))
        if found != expected:
            raise SettingError(
                f"the checkpoint is of another network ({name} is {found} in it, {expected} in this one): go on with "
                "the model settings of its training"
            )
