"""The standard image data sets, read by torchvision and scikit-learn."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torchvision import datasets  # as a module: three of its classes share their names with classes here

from dng_lightning.data.base import ImageDataModule, Parts
from dng_lightning.data.selection import held_out
from dng_lightning.data.torchvision import made
from dng_lightning.errors import SettingError, reason

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST", "ImageDataModule"]


class _Official(ImageDataModule):
    """A data set of torchvision with an official training and test part."""

    source: ClassVar[Any]  # class in torchvision

    def _read(self) -> Parts:
        train, test = (made(self.source, self.root, self.download, {"train": part}) for part in (True, False))
        return (train.data, train.targets), (test.data, test.targets)


class MNIST(_Official):
    """Handwritten digits, 60,000 + 10,000 of 28x28 grey (LeCun et al., 1998); files in `root/MNIST/raw`."""

    source = datasets.MNIST
    class_names = tuple("0123456789")
    image_shape = (1, 28, 28)


class FashionMNIST(MNIST):
    """Clothes, 60,000 + 10,000 of 28x28 grey (Xiao et al., 2017); files in `root/FashionMNIST/raw`."""

    source = datasets.FashionMNIST
    class_names = tuple(datasets.FashionMNIST.classes)
    default_flip = True


class CIFAR10(_Official):
    """Photographs, 50,000 + 10,000 of 32x32 colour (Krizhevsky, 2009).

    Read from `root/cifar-10-batches-bin` (the binary version) if that folder exists, else from
    `root/cifar-10-batches-py` (the Python version, which is downloaded).
    """

    source = datasets.CIFAR10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    image_shape = (3, 32, 32)
    default_flip = True

    def _read(self) -> Parts:
        folder = Path(self.root, "cifar-10-batches-bin")
        if not folder.is_dir():
            return super()._read()
        files = [folder / f"{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
        try:  # records of 1 label byte and 3,072 pixel bytes in (C, H, W) order, as many in each file
            records = np.stack([np.fromfile(path, np.uint8).reshape(-1, 1 + 3072) for path in files])
        except (OSError, ValueError) as error:
            raise SettingError(f"{folder} is damaged ({reason(error)}): provide its files again") from error
        images, labels = records[..., 1:].reshape(len(files), -1, 3, 32, 32), records[..., 0]
        return (np.concatenate(images[:-1]), np.concatenate(labels[:-1])), (images[-1], labels[-1])


class Digits(ImageDataModule):
    """scikit-learn's 1,797 handwritten digits of 8x8 grey (UCI, 1998), 300 of them for testing; nothing to download."""

    class_names = tuple("0123456789")
    image_shape = (1, 8, 8)
    default_val_size = 200

    def _read(self) -> Parts:
        from sklearn.datasets import load_digits  # takes a second to import, and only this class needs it

        if self.root != ImageDataModule.root:
            raise SettingError(f"data.root is {self.root}, but Digits come with scikit-learn: name other data, or none")
        found = load_digits()
        images = (found.images * (255 / 16)).round().astype(np.uint8)  # the source has levels 0..16
        test = held_out(torch.from_numpy(found.target), 300).numpy()
        return (images[~test], found.target[~test]), (images[test], found.target[test])
