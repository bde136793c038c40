"""Data sets of torchvision's through one adapter."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from dng_lightning.data import MNIST, TorchvisionDataset
from dng_lightning.errors import SettingError

DRAWS = np.random.default_rng(0)


def ready(dataset: str, root: Path, **settings: Any) -> TorchvisionDataset:
    data = TorchvisionDataset(dataset=dataset, root=str(root), **settings)
    data.prepare_data()
    data.setup()
    return data


def sizes(data: TorchvisionDataset) -> list[int]:
    return [len(data.part(part)) for part in ("train", "val", "test")]


def test_it_reads_mnist_as_the_class_of_that_name_does(mnist_root: Path):
    one, other = ready("MNIST", mnist_root, val_size=20), MNIST(str(mnist_root), val_size=20)
    other.setup()
    assert one.image_shape == other.image_shape
    for part in ("train", "val", "test"):
        assert torch.equal(one.part(part).images, other.part(part).images)
        assert torch.equal(one.part(part).labels, other.part(part).labels)
    assert one.class_names[7] == "7 - seven"


def test_kmnist_in_another_size(mnist_root: Path):
    shutil.copytree(mnist_root / "MNIST", mnist_root / "KMNIST")  # of the same layout
    data = ready("KMNIST", mnist_root, include_classes="ki", image_size=32, fit="pad")
    assert (data.image_shape, data.class_names[:2], sizes(data)) == ((1, 32, 32), ("o", "ki"), [18, 2, 4])


def test_svhn_has_its_images_in_another_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = {}
    pixels = DRAWS.integers(0, 256, (32, 32, 3, 50), "u1")
    for part, count in (("train", 50), ("test", 20)):
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": pixels[..., :count], "y": (np.arange(count)[:, None] % 10) + 1})
        known[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", known)
    data = ready("torchvision.datasets.SVHN", tmp_path)
    assert (data.image_shape, data.class_names, sizes(data)) == ((3, 32, 32), tuple("0123456789"), [45, 5, 20])
    assert torch.equal(data.part("test").images, torch.from_numpy(pixels.transpose(3, 2, 0, 1)[:20]))
    assert data.part("test").labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # its file calls the zeros 10


@pytest.fixture
def countries(tmp_path: Path) -> Path:
    """Country211 with two of them, its images of several sizes."""
    for part, count in (("train", 6), ("valid", 3), ("test", 2)):
        for country in ("AD", "ZW"):
            for number in range(count):
                path = tmp_path / "country211" / part / country / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20 + number, 30), (200, 20, 20)).save(path)
    return tmp_path


def test_a_set_of_files_with_parts_of_its_own(countries: Path):
    parts = {name: {"split": told} for name, told in (("train", "train"), ("val", "valid"), ("test", "test"))}
    data = ready("Country211", countries, parts=parts, image_size=16)
    assert (data.image_shape, data.class_names, sizes(data)) == ((3, 16, 16), ("AD", "ZW"), [12, 6, 4])
    assert ready("Country211", countries, image_size=16, channels=1).image_shape == (1, 16, 16)
    with pytest.raises(SettingError, match=r"images of 6 sizes, .*: set data\.image_size"):
        ready("Country211", countries)


def test_a_set_without_parts(tmp_path: Path):
    for number in range(40):
        path = tmp_path / "eurosat" / "2750" / ("Forest", "River")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    data = ready("EuroSAT", tmp_path, download=False, exclude_classes="Forest", val_size=8, test_size=10)
    assert (data.class_names, sizes(data)) == (("Forest", "River"), [11, 4, 5])


def test_a_class_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(
        "from PIL import Image\n"
        "class Stripes:\n"
        "    def __init__(self, root, colour=0): self.colour = colour\n"
        "    def __len__(self): return 30\n"
        "    def __getitem__(self, i): return Image.new('L', (8, 8), self.colour), ('a', 'b')[i % 2]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = ready("mine.Stripes", tmp_path, settings={"colour": 9}, val_size=4)
    assert (data.title, data.class_names, sizes(data)) == ("Stripes(colour=9)", ("a", "b"), [23, 4, 3])
    assert data.part("train").images.unique().tolist() == [9]


def test_what_a_class_of_ones_own_complains_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "failing.py").write_text(
        "class Failing:\n    def __init__(self, root): raise RuntimeError('no plates in here')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingError, match=r"no Failing in .* \(no plates in here\)"):
        ready("failing.Failing", tmp_path)


@pytest.mark.parametrize(
    ("dataset", "settings", "said"),
    [
        ("SVNH", {}, "there is no data set 'SVNH'; the nearest names of torchvision's are SVHN"),
        ("nowhere.Data", {}, "there is no data set 'nowhere.Data'"),
        ("KMNIST", {"download": False}, r"no KMNIST in .* \(data\.download is false\)"),
        ("KMNIST", {}, "KMNIST cannot be made from .*'train': True"),
        ("EMNIST", {"settings": {"split": "bytes"}}, r"EMNIST cannot be made from .*'split': 'bytes'"),
        (
            "KMNIST",
            {"settings": {"size": 3}},
            r"KMNIST cannot be made from .*unexpected keyword",
        ),
        ("KMNIST", {"parts": {"test": {}}}, "data.parts are test: give train"),
        ("Flowers102", {"download": False}, "no Flowers102 in"),
    ],
)
def test_what_cannot_be_is_one_line(
    dataset: str, settings: dict[str, Any], said: str, tmp_path: Path, no_network: None
):
    with pytest.raises(SettingError, match=said) as caught:
        ready(dataset, tmp_path, **settings)
    assert "\n" not in str(caught.value)
