"""Data sets in Hugging Face's formats, made by these tests; the hub is not asked."""

from pathlib import Path
from typing import Any

import pytest
from hugging_face_rows import NAMES, datasets, png, rows

from dng_lightning.data import HuggingFaceDataset
from dng_lightning.errors import SettingError

pytestmark = pytest.mark.usefixtures("hugging_face_caches")


def ready(root: Path, **settings: Any) -> HuggingFaceDataset:
    data = HuggingFaceDataset(str(root), **settings)
    data.prepare_data()
    data.setup()
    return data


def sizes(data: HuggingFaceDataset) -> list[int]:
    return [len(data.part(part)) for part in ("train", "val", "test")]


def levels(data: HuggingFaceDataset, part: str) -> list[int]:
    return data.part(part).images[:, 0, 0, 0].tolist()


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    rows(60).to_parquet(str(tmp_path / "data.parquet"))
    return tmp_path / "data.parquet"


def test_a_parquet_file(parquet: Path):
    data = ready(parquet)
    assert (data.image_shape, data.class_names, sizes(data)) == ((1, 8, 8), tuple(NAMES), [49, 5, 6])
    for part in ("train", "val", "test"):
        assert data.part(part).labels.tolist() == [level % 3 for level in levels(data, part)]
    assert {level % 3 for level in levels(ready(parquet, exclude_classes="dog"), "train")} == {0, 2}


def test_an_arrow_file(tmp_path: Path):
    rows(60).save_to_disk(str(tmp_path / "saved"))
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert sizes(ready(file)) == sizes(ready(tmp_path / "saved")) == [49, 5, 6]


@pytest.mark.parametrize("val", ["validation", "valid"])
def test_splits_are_parts(val: str, tmp_path: Path):
    splits = {"train": rows(30), val: rows(9), "test": rows(6), "extra": rows(2)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    data = ready(tmp_path / "saved")
    assert sizes(data) == [30, 9, 6]
    assert levels(data, "test") == list(range(6))


def test_a_folder_of_parquet_files(tmp_path: Path):
    (tmp_path / "data").mkdir()
    for part, count in (("train", 30), ("test", 6)):
        rows(count).to_parquet(str(tmp_path / "data" / f"{part}-00000-of-00001.parquet"))
    assert sizes(ready(tmp_path / "data")) == [27, 3, 6]


def test_captions_where_there_are_no_labels(tmp_path: Path):
    rows(20, without="kind").to_parquet(str(tmp_path / "data.parquet"))
    data = ready(tmp_path / "data.parquet", batch_size=4)
    images, captions = next(iter(data.train_dataloader()))
    assert captions == [f"a {NAMES[n % 3]}, number {n}" for n in images[:, 0, 0, 0].tolist()]
    assert data.class_names == ()


def test_columns_by_name(parquet: Path):
    data = ready(parquet, label="weight", image="picture")
    assert (data.class_names, data.part("train").captions) == (("0", "1"), None)
    assert len(ready(parquet, caption="text").part("train").captions or ()) == 49


def test_the_first_of_a_stream(tmp_path: Path):
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        rows(60).to_parquet(str(tmp_path / "data" / f"{part}-00000-of-00001.parquet"))
    data = ready(tmp_path / "data", first=20)
    assert sizes(data) == [18, 2, 20]
    assert data.class_names == tuple(NAMES)
    assert levels(data, "test") == list(range(20))


def test_images_in_a_mapped_file(parquet: Path, tmp_path: Path):
    folder = tmp_path / "cache"
    for _ in range(2):
        data = ready(parquet, memory_share=0, cache=str(folder))
        assert len(list(folder.glob("*.npy"))) == 1
    assert levels(data, "train") == levels(ready(parquet), "train")


def test_images_that_cannot_be_read(tmp_path: Path):
    pictures = [{"bytes": png(n) if n % 10 else png(n)[:40], "path": None} for n in range(30)]
    rows(30, picture=pictures).to_parquet(str(tmp_path / "data.parquet"))
    with pytest.raises(SettingError, match=r"3 of 30 images cannot be read: train 0 \(.*train 10 .*train 20"):
        ready(tmp_path / "data.parquet")
    assert sum(sizes(ready(tmp_path / "data.parquet", skip_unreadable=True))) == 27


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label": "colour"}, "data.label: .* has no column 'colour'; it has picture, kind, text, weight"),
        ({"image": "img"}, "data.image: .* has no column 'img'"),
        ({"include_classes": "zebra"}, "there is no class 'zebra'"),
    ],
)
def test_columns_that_are_not_there(settings: dict[str, Any], said: str, parquet: Path):
    with pytest.raises(SettingError, match=said) as caught:
        ready(parquet, **settings)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_set(tmp_path: Path):
    rows(5, without="picture").to_parquet(str(tmp_path / "no_images.parquet"))
    with pytest.raises(SettingError, match="has no column of images; it has kind, text, weight"):
        ready(tmp_path / "no_images.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    for root in (tmp_path / "cut.parquet", tmp_path / "nothing", Path("nobody/nothing")):
        with pytest.raises(SettingError, match="cannot be loaded") as caught:
            ready(root)
        assert "\n" not in str(caught.value)


def test_the_library_is_an_extra(parquet: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(SettingError, match=r"pip install 'dng-lightning\[datasets\]'"):
        HuggingFaceDataset(str(parquet))
