"""The output of a module inside a network: the features that a probe reads."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dng_lightning.errors import SettingError


def submodule(net: nn.Module, name: str) -> nn.Module:
    """The module of this name inside a network, such as ``middle2`` of a ``UNet``.

    Raises:
        SettingError: there is none.
    """
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        names = ", ".join(child for child, _ in net.named_children())
        raise SettingError(f"{type(net).__name__} has no module {name!r}: name one inside of {names}") from error


class FeatureTap:
    """Keeps the output of a module in each forward pass of a network.

    For a compiled network, create it before the first forward pass.

    Args:
        net: the network.
        name: name of the module.

    Attributes:
        output: output of the module in the last forward pass, (B, ...).
    """

    output: Tensor

    def __init__(self, net: nn.Module, name: str) -> None:
        submodule(net, name).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.output = tensor_of(output)


def features_only(net: nn.Module, name: str, forward: Callable[[], Any]) -> Tensor:
    """The output of a module in ``forward()``, without the computation after it.

    Args:
        net: the network that ``forward`` calls.
        name: name of the module.
        forward: calls the network.

    Raises:
        SettingError: there is no such module, or the network does not use it.
    """

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        raise _Reached(tensor_of(output))

    handle = submodule(net, name).register_forward_hook(stop)
    try:
        forward()
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise SettingError(f"{type(net).__name__} does not call its module {name!r}: name another")


def tensor_of(output: Any) -> Tensor:
    """A module's output, the first of several."""
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found


class _Reached(Exception):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
