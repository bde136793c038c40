"""Devices that tests have none of."""

import torch


class WithoutDouble(torch.Tensor):
    """A tensor like those on Apple's GPUs, which have no fp64: ``torch.rand(2).as_subclass(WithoutDouble)``."""

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)

    def double(self) -> torch.Tensor:  # type: ignore[override]
        raise TypeError("this device has no fp64")
