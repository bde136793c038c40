"""Arrays of any layout, type and range: in files, and from a data module of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datamodules import ready
from torch import Tensor

from dng_lightning.data import Arrays
from dng_lightning.data.base import ImageDataModule
from dng_lightning.errors import SettingError

DRAWS = np.random.default_rng(0)
PIXELS = DRAWS.integers(0, 256, (60, 8, 10, 3), dtype=np.uint8)  # (N, H, W, C)
GREY = PIXELS[..., 0]
LABELS = np.arange(60) % 3


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path / "data.npz", **arrays)
    return str(path / "data.npz")


def in_order(images: Tensor) -> Tensor:
    """Places of different images in an order that they alone settle."""
    return (images.flatten(1).double() @ torch.arange(images[0].numel()).double().sqrt()).argsort()


def everything(data: ImageDataModule) -> tuple[Tensor, Tensor]:
    """Images and labels in an order of their own."""
    images, labels = (
        torch.cat(both) for both in zip(*(data.part(name)[:] for name in ("train", "val", "test")), strict=True)
    )
    return images[in_order(images)], labels[in_order(images)]


def expected(images: np.ndarray = PIXELS, labels: np.ndarray = LABELS) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None])
    return pixels[in_order(pixels)], torch.from_numpy(labels)[in_order(pixels)]


def assert_same(data: ImageDataModule, images: np.ndarray = PIXELS, labels: np.ndarray = LABELS) -> None:
    for found, wanted in zip(everything(data), expected(images, labels), strict=True):
        assert torch.equal(found, wanted)


# --- layouts and files ---


@pytest.mark.parametrize("images", [PIXELS, PIXELS.transpose(0, 3, 1, 2), GREY, GREY[..., None], GREY[:, None]])
@pytest.mark.parametrize("suffix", ["npz", "npy", "pt"])
def test_layouts_in_every_file(images: np.ndarray, suffix: str, tmp_path: Path):
    file, labels = tmp_path / f"images.{suffix}", tmp_path / "labels.npy"
    np.save(labels, LABELS)
    if suffix == "npz":
        np.savez(file, images=images)
    elif suffix == "npy":
        np.save(file, images)
    else:
        torch.save(torch.from_numpy(images.copy()), file)
    data = ready(Arrays(str(file), labels=str(labels)))
    colours = 3 if 3 in images.shape[1:] and images.ndim == 4 else 1
    assert data.image_shape == (colours, 8, 10)
    assert_same(data, PIXELS if colours == 3 else GREY)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [49, 5, 6]


@pytest.mark.parametrize("shape", [(60,), (60, 8), (60, 8, 8, 5), (2, 3, 4, 5, 6)])
def test_other_shapes_are_refused(shape: tuple[int, ...], tmp_path: Path):
    with pytest.raises(SettingError, match=r"no array of images|images must be \(N, H, W\)|no array"):
        ready(Arrays(saved(tmp_path, images=np.zeros(shape, np.uint8))))


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
)
def test_parts_by_name(names: tuple[str, ...], tmp_path: Path):
    arrays = dict(zip(names, (PIXELS[:40], LABELS[:40], PIXELS[40:], LABELS[40:]), strict=True))
    data = ready(Arrays(saved(tmp_path, **arrays), val_size=10))
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [30, 10, 20]
    assert torch.equal(data.part("test").labels, torch.from_numpy(LABELS[40:]))
    with_val = Arrays(saved(tmp_path, **arrays, val_images=PIXELS[:7], val_labels=LABELS[:7]))
    assert [len(ready(with_val).part(part)) for part in ("train", "val", "test")] == [40, 7, 20]


def test_names_of_arrays_are_read_by_words(tmp_path: Path):
    """There is a "val" in "values", and a "test" in "latest"."""
    data = ready(Arrays(saved(tmp_path, latest=PIXELS, values=LABELS, classes=np.array(["a", "b", "c"]))))
    assert_same(data)


def test_tensors_in_a_dictionary(tmp_path: Path):
    torch.save({"a": torch.from_numpy(PIXELS), "b": torch.from_numpy(LABELS)}, tmp_path / "both.pt")
    torch.save((torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), tmp_path / "pair.pt")
    for name in ("both.pt", "pair.pt"):
        assert_same(ready(Arrays(str(tmp_path / name))))


def test_files_that_cannot_be_used(tmp_path: Path):
    def complaint(root: Path) -> str:
        with pytest.raises(SettingError) as caught:
            ready(Arrays(str(root)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no file" in complaint(tmp_path / "nothing.npz")
    for name in ("cut.npz", "cut.npy", "cut.pt", "images.txt"):
        (tmp_path / name).write_bytes(b"\x93NUMPY")
        assert f"{name} cannot be used" in complaint(tmp_path / name)
    np.save(tmp_path / "code.npy", np.array([Path()], dtype=object))  # an array of objects is a pickle
    assert "code.npy cannot be used" in complaint(tmp_path / "code.npy")
    torch.save(Path(), tmp_path / "code.pt")
    assert "code.pt cannot be used" in complaint(tmp_path / "code.pt")
    assert "several arrays that could be train images" in complaint(Path(saved(tmp_path, a=PIXELS, b=PIXELS)))
    assert "some of its parts have labels" in complaint(
        Path(saved(tmp_path, train=PIXELS, y_train=LABELS, test=PIXELS))
    )


# --- ranges ---


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (PIXELS / 127.5 - 1, "read as -1 (black) to 1 (white)"),
        ((PIXELS / 127.5 - 1).astype(np.float16), "read as -1 (black) to 1 (white)"),
        ((PIXELS / 255).astype(np.float32), "read as 0 (black) to 1 (white)"),
        (PIXELS.astype(np.float32), "read as 0 (black) to 255 (white)"),
        (PIXELS.astype(np.int64), "read as 0 (black) to 255 (white)"),
        (PIXELS.astype(np.int32) * 257, "read as 0 (black) to 65535 (white)"),
        (PIXELS.astype(np.uint16) * 257, ""),
        ((PIXELS.astype(np.int32) * 257).astype(">i4"), "read as 0 (black) to 65535 (white)"),
    ],
)
def test_ranges_are_found_and_said(images: np.ndarray, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        data = ready(Arrays(saved(tmp_path, images=images, labels=LABELS)))
    assert said in caplog.text
    if images.dtype == np.float16:
        assert (everything(data)[0].int() - expected()[0].int()).abs().max() <= 1
    else:
        assert_same(data)


def test_black_and_white(tmp_path: Path):
    assert_same(ready(Arrays(saved(tmp_path, images=PIXELS > 127, labels=LABELS))), ((PIXELS > 127) * 255).astype("u1"))


@pytest.mark.parametrize("low_and_high", [(0, 0.4), (-0.3, 0.3), (-3, 3), (0, 2), (0, 100), (-1, 0.2), (0, 300)])
def test_a_range_that_cannot_be_told_is_an_error(low_and_high: tuple[float, float], tmp_path: Path):
    low, high = low_and_high
    path = saved(tmp_path, images=low + PIXELS / 255 * (high - low), labels=LABELS)
    with pytest.raises(SettingError, match=r"the meaning of the values .* is unclear: set data\.value_range"):
        ready(Arrays(path))
    assert_same(ready(Arrays(path, value_range=(low, high))))


def test_values_outside_the_stated_range(tmp_path: Path):
    path = saved(tmp_path, images=PIXELS / 255, labels=LABELS)
    with pytest.raises(SettingError, match=r"values outside 0 to 0\.5"):
        ready(Arrays(path, value_range=(0, 0.5)))
    with pytest.raises(SettingError, match="give the values of black and of white"):
        Arrays(path, value_range=(1, 1))


@pytest.mark.parametrize("value_range", [None, (0, 1)])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_image(wrong: float, value_range: Any, tmp_path: Path):
    images = PIXELS / 255
    images[30, 2, 2] = wrong
    with pytest.raises(SettingError, match="image 30 has NaN or infinite values"):
        ready(Arrays(saved(tmp_path, images=images), value_range=value_range))


def test_the_training_images_settle_the_range_of_all(tmp_path: Path):
    dark = PIXELS[:20].astype(np.float32) / 255  # of 0..255 all of them black, of 0..1 all there is
    data = ready(Arrays(saved(tmp_path, x_train=PIXELS.astype(np.float32), x_test=dark)))
    assert int(data.part("test").images.max()) <= 1


# --- labels ---


@pytest.mark.parametrize(
    "labels",
    [*(LABELS.astype(kind) for kind in ("u1", "i1", "i2", "i4", "u8", "f4")), np.eye(3)[LABELS], LABELS[:, None]],
)
def test_labels_of_any_type(labels: np.ndarray, tmp_path: Path):
    data = ready(Arrays(saved(tmp_path, images=PIXELS, labels=labels)))
    assert data.class_names == ("0", "1", "2")
    assert_same(data)


def test_labels_that_do_not_start_at_0_keep_their_names(tmp_path: Path):
    path = saved(tmp_path, images=PIXELS, labels=LABELS * 4 + 2)
    data = ready(Arrays(path))
    assert data.class_names == ("2", "6", "10")
    assert_same(data)
    assert ready(Arrays(path, include_classes="10")).part("train").labels.unique().tolist() == [2]
    named = ready(Arrays(path, names=["cat", "dog", "horse"]))
    assert (named.class_names, named.seen_classes) == (("cat", "dog", "horse"), [0, 1, 2])
    assert_same(named)


def test_names_are_labels(tmp_path: Path):
    data = ready(Arrays(saved(tmp_path, images=PIXELS, labels=np.array(["a", "b", "c"])[LABELS])))
    assert data.class_names == ("a", "b", "c")
    assert_same(data)


def test_no_labels(tmp_path: Path):
    data = ready(Arrays(saved(tmp_path, images=PIXELS)))
    assert (data.class_names, data.seen_classes) == ((), [])


@pytest.mark.parametrize(
    ("labels", "settings", "said"),
    [
        (LABELS[:-1], {}, "labels 59 for 60 images"),
        (np.ones((60, 3)), {}, "not one-hot"),
        (LABELS + 0.5, {}, "neither whole numbers nor names"),
        (LABELS, {"names": ["a", "b"]}, "3 labels, from 0 to 2, and 2 class names"),
        (LABELS, {"names": ["a", "b", "b"]}, "has a class twice"),
        (LABELS + 2, {"names": ["a", "b", "c", "d"]}, "3 labels, from 2 to 4, and 4 class names"),
    ],
)
def test_labels_that_cannot_be(labels: np.ndarray, settings: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(SettingError, match=said):
        ready(Arrays(saved(tmp_path, images=PIXELS, labels=labels), **settings))


# --- sizes ---


def test_images_are_resized(tmp_path: Path):
    path = saved(tmp_path, images=PIXELS, labels=LABELS)
    padded = ready(Arrays(path, image_size=(12, 16), fit="pad"))
    assert padded.image_shape == (3, 12, 16)
    shown = everything(padded)[0]
    assert torch.equal(shown[:, :, 2:10, 3:13].flatten(1).sum(1), shown.flatten(1).sum(1))
    cropped = ready(Arrays(path, image_size=4))
    assert cropped.part("train").images.shape[1:] == (3, 4, 4)
