"""A tiny classifier and images for it, in tests."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dng_lightning.data.pixels import to_float
from dng_lightning.judges import (
    Preprocessing,
)

PIXELS = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = to_float(PIXELS)
PLAIN = Preprocessing([0.0] * 3, [1.0] * 3, size=8)


class Net(nn.Module):
    """The shape of a classifier: features, and a linear layer over them."""

    def __init__(self, classes: int = 4, size: int = 8, channels: int = 3) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 5), nn.ReLU())
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


def weights_of(net: nn.Module, path: Path) -> str:
    torch.save(net.state_dict(), path)
    return str(path)
