"""Lightning data modules over images held in memory, and the project's one uint8 <-> float conversion."""

from dng_lightning.data.images import CIFAR10, MNIST, Digits, FashionMNIST
from dng_lightning.data.seeds import Seeds

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST", "Seeds"]
