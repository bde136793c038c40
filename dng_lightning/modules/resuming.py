"""Which parts of a checkpoint a resumed training restores."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dng_lightning.errors import SettingError

WEIGHTS_ALONE = "the checkpoint holds weights alone: start a new run from them with --weights"
PLATEAU = {"best", "cooldown_counter", "num_bad_epochs"}  # state of a ReduceLROnPlateau


def keep_settings(is_plateau: bool, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser, with the settings of the resumed run.

    Args:
        is_plateau: keep the learning rate of a ``ReduceLROnPlateau``, if its initial rate is the same.
        optimizer: optimiser of the resumed run.
        state: state in the checkpoint.

    Raises:
        SettingError: the state belongs to another kind of optimiser.
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
    """Check that a checkpoint has the weights of this network.

    Args:
        stored: weights in the checkpoint.
        own: weights of the network.

    Raises:
        SettingError: a weight is missing, or has another shape.
    """
    for name in {**own, **stored}:
        found, expected = (tuple(state[name].shape) if name in state else "missing" for state in (stored, own))
        if found != expected:
            raise SettingError(
                f"the checkpoint is of another network ({name} is {found} in it, {expected} in this one): go on with "
                "the model settings of its training"
            )
