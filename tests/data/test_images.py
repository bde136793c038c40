"""Built-in data sets: reading, filters, split, batches."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datamodules import ready
from torch import Tensor

from dng_lightning.data.base import held_out
from dng_lightning.data.images import CIFAR10, MNIST, Digits, FashionMNIST, ImageDataModule
from dng_lightning.errors import SettingError


def numbers(data: ImageDataModule, part: str) -> set[int]:
    """Which of the numbered images of `mnist_root` are in a part."""
    return set(data.part(part).images[:, 0, 0, 0].tolist())


def arrived(data: ImageDataModule, images: Tensor, training: bool) -> Tensor:
    """The images as they reach the network."""
    data.trainer = SimpleNamespace(training=training)  # type: ignore[assignment]
    return data.on_after_batch_transfer((images, torch.zeros(len(images))), 0)[0]


# --- what is read ---


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_idx_files(source: type[ImageDataModule], mnist_root: Path):
    data = ready(source(str(mnist_root), val_size=20))
    for part, count in (("train", 180), ("val", 20), ("test", 40)):
        images, labels = data.part(part).images, data.part(part).labels
        assert images.shape == (count, *source.image_shape)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(images[:, 0, 0, 0] % 10, labels.to(torch.uint8))  # image n was given label n mod 10


def test_both_cifar_layouts_give_the_same_tensors(cifar_binary_root: Path, cifar_pickle_root: Path):
    binary, pickles = (ready(CIFAR10(str(root), val_size=10)) for root in (cifar_binary_root, cifar_pickle_root))
    for part, count in (("train", 90), ("val", 10), ("test", 20)):
        assert binary.part(part).images.shape == (count, 3, 32, 32)
        assert torch.equal(binary.part(part).images, pickles.part(part).images)
        assert torch.equal(binary.part(part).labels, pickles.part(part).labels)


def test_cifar_pixels_are_channel_row_column(cifar_binary_root: Path):
    record = (cifar_binary_root / "cifar-10-batches-bin" / "test_batch.bin").read_bytes()[: 1 + 3072]
    images, labels = ready(CIFAR10(str(cifar_binary_root), val_size=0)).part("test")[0]
    assert int(labels) == record[0]
    assert int(images[2, 5, 7]) == record[1 + 2 * 1024 + 5 * 32 + 7]


def test_digits_need_no_files(tmp_path: Path, no_network: None):
    with pytest.raises(SettingError, match="Digits come with scikit-learn"):
        Digits(str(tmp_path)).setup()  # else a user would take them for what is in the folder
    data = ready(Digits())
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [1297, 200, 300]
    images = data.part("train").images
    assert images.shape[1:] == Digits.image_shape == (1, 8, 8)
    assert (int(images.min()), int(images.max()), len(images.unique())) == (0, 255, 17)
    for part in ("train", "val", "test"):
        shares = data.part(part).labels.bincount(minlength=10) / len(data.part(part))
        assert (shares - 0.1).abs().max() < 0.01


def test_real_mnist(real_data: Path):
    data = ready(MNIST(str(real_data)))
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [55000, 5000, 10000]
    assert data.part("test").labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.part("test").images.float().mean() / 255 == pytest.approx(0.1325, abs=1e-4)


def test_real_cifar10(real_data: Path):
    data = ready(CIFAR10(str(real_data)))
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [45000, 5000, 10000]
    assert [CIFAR10.class_names[label] for label in data.part("test").labels[:4]] == ["cat", "ship", "ship", "airplane"]
    everything = torch.cat([data.part("train").images, data.part("val").images]).float() / 255
    assert everything.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


# --- filters and split ---


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ({"include_classes": "3"}, [3]),
        ({"include_classes": 3}, [3]),
        ({"include_classes": ["7", 2]}, [2, 7]),
        ({"exclude_classes": 0}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"exclude_classes": ["8", "9", "8"]}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({}, list(range(10))),
    ],
)
def test_filters_keep_the_labels(setting: dict[str, object], seen: list[int], mnist_root: Path):
    data = ready(MNIST(str(mnist_root), val_size=50, **setting))  # type: ignore[arg-type]
    assert data.seen_classes == seen
    for part in ("train", "val", "test"):
        assert data.part(part).labels.unique().tolist() == seen


def test_classes_by_name_whatever_the_case():
    assert CIFAR10(include_classes=["Cat", "ship"]).seen_classes == [3, 8]
    assert FashionMNIST(include_classes="t-shirt/top").seen_classes == [0]
    assert CIFAR10(include_classes="3").seen_classes == [3]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"include_classes": "unicorn"}, "no class 'unicorn'; CIFAR10 knows airplane, automobile"),
        ({"exclude_classes": 10}, "no class 10"),
        ({"include_classes": -1}, "no class -1"),
        ({"include_classes": 1, "exclude_classes": 2}, "exclude each other"),
        ({"include_classes": []}, "leaves no class"),
        ({"exclude_classes": list(range(10))}, "leaves no class"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, object], message: str):
    with pytest.raises(SettingError, match=message):
        CIFAR10(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("val_size", [-1, 200, 1000])
def test_validation_must_leave_training_images(val_size: int, mnist_root: Path):
    with pytest.raises(SettingError, match=r"data\.val_size is .* give 0 to 199"):
        ready(MNIST(str(mnist_root), val_size=val_size))


def test_the_split_is_disjoint_complete_and_stratified(mnist_root: Path):
    data = ready(MNIST(str(mnist_root), val_size=30))
    assert numbers(data, "train") | numbers(data, "val") == set(range(200))
    assert not numbers(data, "train") & numbers(data, "val")
    assert data.part("val").labels.bincount().tolist() == [3] * 10


def test_the_split_depends_neither_on_filters_nor_on_the_global_seed(mnist_root: Path):
    torch.manual_seed(1)
    whole = ready(MNIST(str(mnist_root), val_size=30))
    torch.manual_seed(2)
    fours = ready(MNIST(str(mnist_root), val_size=30, include_classes=4))
    for part in ("train", "val"):
        assert numbers(fours, part) == {n for n in numbers(whole, part) if n % 10 == 4}


def test_the_split_is_the_same_forever():
    """A changed split would leak validation images into the training of whoever resumes an older run."""
    assert held_out(torch.arange(50) % 2, 5).nonzero().flatten().tolist() == [0, 12, 37, 44, 47]


@pytest.mark.parametrize("count", [0, 1, 99, 100])
def test_held_out_takes_the_number_asked_for(count: int):
    assert int(held_out(torch.arange(100) % 7, count).sum()) == count


# --- loaders and batches ---


def test_batches(mnist_root: Path):
    data = ready(MNIST(str(mnist_root), batch_size=64, val_size=20))
    train, val, test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert [len(labels) for _, labels in train] == [64, 64]  # 180 images: the incomplete batch is dropped
    assert [len(labels) for _, labels in val] == [20]
    images = torch.cat([images for images, _ in test])
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == list(range(40))  # in order, none lost
    orders = [torch.cat([labels for _, labels in train]).tolist() for _ in range(2)]
    assert orders[0] != orders[1]


def test_a_set_smaller_than_a_batch_is_one_batch(mnist_root: Path):
    data = ready(MNIST(str(mnist_root), batch_size=512, val_size=20))
    assert [len(labels) for _, labels in data.train_dataloader()] == [180]


def test_worker_processes_give_the_same_images(mnist_root: Path):
    data = ready(MNIST(str(mnist_root), batch_size=16, val_size=20, num_workers=1))
    images = torch.cat([images for images, _ in data.test_dataloader()])
    assert torch.equal(images, data.part("test").images)


@pytest.mark.parametrize("source", [MNIST, FashionMNIST, CIFAR10, Digits])
def test_the_usual_flip(source: type[ImageDataModule]):
    assert source().flip == (source in (FashionMNIST, CIFAR10))
    assert source(flip=False).flip is False


def test_flips_only_in_training():
    images = torch.arange(64 * 12, dtype=torch.int).remainder(256).to(torch.uint8).view(64, 1, 3, 4)
    plain, mirrored = arrived(Digits(flip=False), images, True), arrived(Digits(flip=False), images.flip(-1), True)
    assert plain.dtype == torch.float32
    assert torch.equal(arrived(Digits(flip=True), images, training=False), plain)
    flipped = arrived(Digits(flip=True), images, training=True)
    is_plain = (flipped == plain).flatten(1).all(1)
    is_mirrored = (flipped == mirrored).flatten(1).all(1)
    assert (is_plain ^ is_mirrored).all()  # each image is whole, one or the other
    assert 10 < is_mirrored.sum() < 54
