"""The standard image data sets, read by torchvision and scikit-learn; an error names the damaged file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets  # as a module: three of its classes share their names with classes here
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from dng_lightning.data.base import Arrays, ImageDataModule
from dng_lightning.data.selection import held_out
from dng_lightning.errors import SettingError, reason

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST", "ImageDataModule"]


class MNIST(ImageDataModule):
    """Handwritten digits, 60,000 + 10,000 of 28x28 grey (LeCun et al., 1998); files in `root/MNIST/raw`."""

    source = datasets.MNIST
    class_names = tuple("0123456789")
    image_shape = (1, 28, 28)
    files = "MNIST/raw/*-ubyte"

    def _is_there(self) -> bool:
        return all(path.exists() for part in ("train", "t10k") for path in self._paths(part))

    def _read(self) -> tuple[Arrays, Arrays]:
        return self._part("train"), self._part("t10k")

    def _part(self, name: str) -> Arrays:
        images_file, labels_file = self._paths(name)
        with named_if_damaged(images_file):
            images = read_image_file(str(images_file)).view(-1, 1, 28, 28)
        with named_if_damaged(labels_file):
            return images, _checked(read_label_file(str(labels_file)), len(images))

    def _paths(self, part: str) -> list[Path]:
        folder = self.folder / self.source.__name__ / "raw"
        return [folder / f"{part}-{file}-ubyte" for file in ("images-idx3", "labels-idx1")]


class FashionMNIST(MNIST):
    """Clothes, 60,000 + 10,000 of 28x28 grey (Xiao et al., 2017); files in `root/FashionMNIST/raw`."""

    source = datasets.FashionMNIST
    class_names = tuple(datasets.FashionMNIST.classes)
    files = "FashionMNIST/raw/*-ubyte"
    default_flip = True


class CIFAR10(ImageDataModule):
    """Photographs, 50,000 + 10,000 of 32x32 colour (Krizhevsky, 2009).

    Read from `root/cifar-10-batches-bin` (the binary version) if that folder exists, else from
    `root/cifar-10-batches-py` (the Python version, which is downloaded).
    """

    source = datasets.CIFAR10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    image_shape = (3, 32, 32)
    files = "cifar-10-batches-bin/*.bin or cifar-10-batches-py/*"
    default_flip = True

    def _is_there(self) -> bool:
        return self._binary.is_dir() or all(path.exists() for path in self._pickles())

    def _read(self) -> tuple[Arrays, Arrays]:
        if self._binary.is_dir():
            return self._records([f"data_batch_{i}.bin" for i in range(1, 6)]), self._records(["test_batch.bin"])
        for path, md5 in self._pickles().items():  # torchvision refuses a changed pickle, but does not name it
            with named_if_damaged(path):
                if not check_integrity(str(path), md5):
                    raise ValueError("its MD5 hash is not the official one")
        train, test = (self.source(self.root, train) for train in (True, False))
        return (train.data, train.targets), (test.data, test.targets)

    def _records(self, names: list[str]) -> Arrays:
        """The binary version: records of 1 label byte and 3,072 pixel bytes in (C, H, W) order."""
        # All six files have the same size, so that the longest gives the expected size of a truncated one.
        full = max((path.stat().st_size for path in self._binary.glob("*_batch*.bin")), default=0)
        parts = []
        for path in (self._binary / name for name in names):
            with named_if_damaged(path):
                if len(data := bytearray(path.read_bytes())) != full:
                    raise ValueError(f"{len(data):,} bytes instead of {full:,}")
                parts.append(torch.frombuffer(data, dtype=torch.uint8).view(-1, 3073))
                _checked(parts[-1][:, 0], len(parts[-1]))
        records = torch.cat(parts)
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()

    def _pickles(self) -> dict[Path, str]:
        """The files of the Python version and their MD5 hashes."""
        found = self.source
        files = [*found.train_list, *found.test_list, [found.meta["filename"], found.meta["md5"]]]
        return {self.folder / found.base_folder / name: md5 for name, md5 in files}

    @property
    def _binary(self) -> Path:
        return self.folder / "cifar-10-batches-bin"


class Digits(ImageDataModule):
    """scikit-learn's 1,797 handwritten digits of 8x8 grey (UCI, 1998), 300 of them for testing; nothing to download."""

    class_names = tuple("0123456789")
    image_shape = (1, 8, 8)
    default_val_size = 200

    def _is_there(self) -> bool:
        if self.root != ImageDataModule.root:
            raise SettingError(f"data.root is {self.root}, but Digits come with scikit-learn: name other data, or none")
        return True

    def _read(self) -> tuple[Arrays, Arrays]:
        from sklearn.datasets import load_digits  # takes a second to import, and only this class needs it

        found = load_digits()
        images = torch.from_numpy((found.images * (255 / 16)).round()).to(torch.uint8)  # the source has levels 0..16
        labels = torch.from_numpy(found.target)
        test = held_out(labels, 300)
        return (images[~test], labels[~test]), (images[test], labels[test])


@contextlib.contextmanager
def named_if_damaged(path: Path) -> Iterator[None]:
    """Convert any error while ``path`` is read into a SettingError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise SettingError(f"{path} is missing: provide the file, or name another folder with --data.root.") from error
    except Exception as error:  # a damaged file can fail in any way
        raise SettingError(
            f"{path} is damaged ({reason(error)}): delete it and provide or download it again."
        ) from error


def _checked(labels: Tensor, count: int) -> Tensor:
    if not len(labels) == count > 0:
        raise ValueError(f"{len(labels):,} labels for {count:,} images")
    if int(labels.max()) > 9:
        raise ValueError(f"label {int(labels.max())} outside 0..9")
    return labels
