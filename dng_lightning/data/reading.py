"""From the official data files to uint8 tensors; a file that is missing or damaged is one clear line."""

import contextlib
import io
import tarfile
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from dng_lightning.errors import SettingError

Arrays = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W), labels int64 (N,)

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR10_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR10_PIXELS = 3 * 32 * 32


def read_idx(folder: Path, part: str) -> Arrays:
    """Read one part of MNIST or FashionMNIST.

    Args:
        folder: the `raw` folder with the four unpacked IDX files.
        part: `train` or `test`.

    Raises:
        SettingError: a file is missing, truncated, not IDX, or its labels do not fit.
    """
    images_file, labels_file = (folder / name for name in IDX_FILES[part])
    with _damage_named(images_file):
        images = read_image_file(str(images_file))
        if images.shape[1:] != (28, 28):
            raise ValueError(f"images of {images.shape[1]}x{images.shape[2]} pixels instead of 28x28")
    with _damage_named(labels_file):
        labels = read_label_file(str(labels_file))
        _check_labels(labels, len(images))
    return images[:, None], labels


def read_cifar10_binary(folder: Path, part: str) -> Arrays:
    """Read one part of CIFAR-10's binary version: records of 1 label byte and 3,072 pixel bytes in (C, H, W) order.

    Args:
        folder: `cifar-10-batches-bin`.
        part: `train` or `test`.

    Raises:
        SettingError: a file is missing, truncated or has labels outside 0..9.
    """
    # All six files hold equally many records, so the longest shows what a truncated one should have had.
    full = max((path.stat().st_size for path in folder.glob("*_batch*.bin")), default=0)
    records = []
    for name in CIFAR10_FILES[part]:
        with _damage_named(folder / name):
            data = (folder / name).read_bytes()
            if len(data) != full or not data or len(data) % (1 + CIFAR10_PIXELS):
                raise ValueError(f"{len(data):,} bytes instead of {full:,} in records of {1 + CIFAR10_PIXELS:,}")
            batch = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, 1 + CIFAR10_PIXELS)
            _check_labels(batch[:, 0], len(batch))
            records.append(batch)
    batches = torch.cat(records)
    return batches[:, 1:].reshape(-1, 3, 32, 32), batches[:, 0].long()


def cifar10_pickles(root: Path) -> dict[Path, str]:
    """The files of CIFAR-10's Python version and their MD5 hashes."""
    source = datasets.CIFAR10
    files = [*source.train_list, *source.test_list, [source.meta["filename"], source.meta["md5"]]]
    return {root / source.base_folder / name: md5 for name, md5 in files}


def read_cifar10_pickles(root: Path, part: str) -> Arrays:
    """Read one part of CIFAR-10's Python version through torchvision, which checks each pickle's hash before use.

    Args:
        root: the folder that holds `cifar-10-batches-py`.
        part: `train` or `test`.

    Raises:
        SettingError: the hash of a file is wrong.
    """
    for path, md5 in cifar10_pickles(root).items():
        with _damage_named(path):
            if not check_integrity(str(path), md5):
                raise ValueError("its MD5 hash is not the official one")
    found = datasets.CIFAR10(str(root), train=part == "train", download=False)
    return torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(found.targets)


def download(name: str, root: Path, fetch: Callable[[], object]) -> None:
    """Run a torchvision download and turn its many ways to fail into one line.

    Args:
        name: the data set, for the message.
        root: where it is to be stored, for the message.
        fetch: starts the download.

    Raises:
        SettingError: the download failed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints a line per mirror it tried
            fetch()
    except (RuntimeError, OSError, HTTPException, EOFError, tarfile.TarError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise SettingError(f"{missing(name, root)} Downloading failed: {reason}") from error


def missing(name: str, root: Path) -> str:
    """Say what was looked for, where, and how to provide it."""
    places = {"CIFAR10": "cifar-10-batches-bin/*.bin or cifar-10-batches-py/*"}
    wanted = places.get(name, f"{name}/raw/*-ubyte")
    return f"no {name} in {root.absolute()}: put {wanted} there, or name its folder with --data.root."


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into one line that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise SettingError(f"{path} is missing: provide the file, or name another folder with --data.root.") from error
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, OSError) as error:
        # torchvision's own complaints about a short file ("shape [...] is invalid") say nothing to a user
        reason = str(error).splitlines()[0] if str(error) else "not what its header promises"
        raise SettingError(f"{path} is damaged ({reason}): delete it and provide or download it again.") from error


def _check_labels(labels: Tensor, count: int) -> None:
    if len(labels) != count:
        raise ValueError(f"{len(labels):,} labels for {count:,} images")
    if count == 0:
        raise ValueError("empty")
    if int(labels.max()) > 9:
        raise ValueError(f"label {int(labels.max())} outside 0..9")
