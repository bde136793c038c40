"""Data that are missing or damaged are refused in one line."""

from pathlib import Path

import pytest
from datamodules import ready

from dng_lightning.data.images import CIFAR10, MNIST, FashionMNIST, ImageDataModule
from dng_lightning.errors import SettingError


@pytest.mark.parametrize("source", [MNIST, FashionMNIST, CIFAR10])
@pytest.mark.parametrize("download", [False, True])
def test_no_data_is_one_line(source: type[ImageDataModule], download: bool, tmp_path: Path, no_network: None, capsys):
    with pytest.raises(SettingError) as caught:
        source(str(tmp_path), download=download).setup()
    line = str(caught.value)
    assert "\n" not in line
    assert source.__name__ in line
    assert str(tmp_path) in line
    assert "--data.root" in line
    assert ("Name or service not known" if download else "data.download is false") in line
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), OSError("disk"), EOFError(), ConnectionResetError("gone")])
def test_every_kind_of_failing_download_is_one_line(error: Exception, tmp_path: Path, monkeypatch):
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(CIFAR10.source, "download", fail)
    with pytest.raises(SettingError) as caught:
        CIFAR10(str(tmp_path)).setup()
    assert "\n" not in str(caught.value)


def test_a_failed_download_can_be_tried_again(tmp_path: Path, no_network: None):
    for _ in range(2):
        with pytest.raises(SettingError, match="Name or service not known"):
            CIFAR10(str(tmp_path)).setup()


def test_half_a_download_is_one_line_and_fetched_again(tmp_path: Path, no_network: None, cifar_pickle_root: Path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b" + bytes(1000))  # an archive cut short
    (cifar_pickle_root / "cifar-10-batches-py" / "data_batch_5").unlink()  # or its unpacking
    for root in (tmp_path, cifar_pickle_root):
        with pytest.raises(SettingError, match=r"^CIFAR10 cannot be made from [^\n]+$"):
            CIFAR10(str(root)).setup()


def test_setup_without_files_is_one_line(tmp_path: Path):
    with pytest.raises(SettingError, match="no MNIST in"):
        MNIST(str(tmp_path), download=False).setup()


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("kept", [0, 3, 10, 100])
def test_truncated_idx_file(file: str, kept: int, mnist_root: Path):
    path = mnist_root / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SettingError) as caught:
        ready(MNIST(str(mnist_root)))
    assert "\n" not in str(caught.value)
    assert str(mnist_root) in str(caught.value)
    assert "damaged" in str(caught.value)


def test_wrong_idx_labels(mnist_root: Path):
    path = mnist_root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([10]))
    with pytest.raises(SettingError, match=r"^MNIST's train part has labels 0 to 10: 10 classes have"):
        ready(MNIST(str(mnist_root)))
    path.write_bytes((mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(SettingError, match="labels 40 for 200 images"):
        ready(MNIST(str(mnist_root)))


@pytest.mark.parametrize("kept", [0, 100, 10 * 3073, 20 * 3073 - 1])  # half of the records is a whole number of them
def test_truncated_cifar_batch(kept: int, cifar_binary_root: Path):
    path = cifar_binary_root / "cifar-10-batches-bin" / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SettingError) as caught:
        ready(CIFAR10(str(cifar_binary_root)))
    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)


def test_wrong_cifar_label(cifar_binary_root: Path):
    path = cifar_binary_root / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(SettingError, match=r"^CIFAR10's test part has labels 0 to 10"):
        ready(CIFAR10(str(cifar_binary_root)))


def test_missing_cifar_batch(cifar_binary_root: Path):
    (cifar_binary_root / "cifar-10-batches-bin" / "data_batch_2.bin").unlink()
    with pytest.raises(SettingError, match=r"is damaged .*data_batch_2\.bin"):
        ready(CIFAR10(str(cifar_binary_root)))


def test_a_changed_pickle_is_refused_unread(cifar_pickle_root: Path, no_network: None):
    path = cifar_pickle_root / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(b"cos\nabort\n(tR.")  # would end the process if it were unpickled
    with pytest.raises(SettingError, match=r"^no CIFAR10 in .*download is false"):
        ready(CIFAR10(str(cifar_pickle_root), download=False))
    with pytest.raises(SettingError, match=r"CIFAR10 cannot be made .*Name or service not known"):  # downloaded again
        ready(CIFAR10(str(cifar_pickle_root)))
