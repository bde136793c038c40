"""Tiny data sets in the official file layouts."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import write
from mnist_files import mnist_root, write_idx  # noqa: F401  # a fixture of these tests
from torchvision import datasets

from dng_lightning.data.images import CIFAR10


def cifar_batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per file name: labels (20,) and pixels (20, 3072)."""
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {name: (rng.permutation(20) % 10, rng.integers(0, 256, (20, 3072), dtype=np.uint8)) for name in names}


@pytest.fixture
def cifar_binary_root(tmp_path: Path) -> Path:
    folder = tmp_path / "binary" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (labels, pixels) in cifar_batches().items():
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder.parent


@pytest.fixture
def cifar_pickle_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same images in the layout of the Python version, torchvision being told the hashes of these files."""
    folder = tmp_path / "pickles" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, object]) -> list[str]:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    entries = [write(name, {"data": x, "labels": y.tolist()}) for name, (y, x) in cifar_batches().items()]
    meta = write("batches.meta", {"label_names": list(CIFAR10.class_names)})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", entries[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", entries[5:])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", meta[1])
    return folder.parent


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host name can be resolved."""
    import socket

    def fail(*_: object, **__: object) -> Callable[..., None]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Sixty images of three classes, each of another level, which the name says."""
    for number in range(60):
        write(tmp_path / "photos" / ("cat", "dog", "wild horse")[number % 3] / f"{number:02}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def tabled(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    rows = []
    for number in range(30):
        name = f"images/{number}.png"
        write(tmp_path / name, number)
        kind = {"colour": ("red", "blue")[number % 2], "shape": ("ring", "bar", "cross")[number % 3]}
        rows.append({"text": f"a {kind['colour']}, {kind['shape']}", "file_name": name, **kind})
    return tmp_path, rows


@pytest.fixture
def damaged(classes: Path) -> Path:
    content = (classes / "cat" / "00.png").read_bytes()
    (classes / "cat" / "cut.png").write_bytes(content[:-30])
    (classes / "dog" / "empty.jpg").write_bytes(b"")
    (classes / "dog" / "text.png").write_text("hello")
    return classes


@pytest.fixture
def hugging_face_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's caches are in a folder of the test, and the hub is not asked."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
