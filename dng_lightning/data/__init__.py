"""Lightning data modules of images, and the conversion between uint8 pixels and floats."""

from dng_lightning.data.arrays import Arrays
from dng_lightning.data.hugging_face import HuggingFaceDataset
from dng_lightning.data.hugging_face_stream import HuggingFaceStream
from dng_lightning.data.image_folder import ImageFolder
from dng_lightning.data.images import CIFAR10, MNIST, Digits, FashionMNIST
from dng_lightning.data.seeds import Seeds
from dng_lightning.data.torchvision import TorchvisionDataset

__all__ = [
    "CIFAR10",
    "MNIST",
    "Arrays",
    "Digits",
    "FashionMNIST",
    "HuggingFaceDataset",
    "HuggingFaceStream",
    "ImageFolder",
    "Seeds",
    "TorchvisionDataset",
]
