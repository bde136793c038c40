"""Folders of images: layouts, tables, sizes, files that cannot be read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_files import complaint, levels, ready, table, write
from PIL import Image
from running import Dng

from dng_lightning.errors import SettingError

# --- layouts ---


def test_a_subfolder_a_class(classes: Path):
    (classes / "nothing").mkdir()
    write(classes / "dog" / "puppies" / "100.png", 100)  # below a class is of the class
    for junk in (".DS_Store", "cat/._00.png", "Thumbs.db", ".cache/1.png"):
        (classes / junk).parent.mkdir(exist_ok=True)
        (classes / junk).write_bytes(b"junk")
    data = ready(classes)
    assert data.class_names == ("cat", "dog", "wild horse")
    assert data.seen_classes == [0, 1, 2]
    assert data.image_shape == (1, 8, 8)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [50, 5, 6]
    everything = [level for part in ("train", "val", "test") for level in levels(data, part)]
    assert sorted(everything) == [*range(60), 100]
    for part in ("train", "val", "test"):
        for level, label in zip(levels(data, part), data.part(part).labels.tolist(), strict=True):
            assert label == (1 if level == 100 else level % 3)


def test_a_flat_folder_has_no_classes(tmp_path: Path):
    for number in range(20):
        write(tmp_path / f"ünï code {number}.png", number)
    data = ready(tmp_path)
    assert (data.class_names, data.seen_classes) == ((), [])
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [17, 1, 2]
    assert data.part("train").labels.unique().tolist() == [0]
    assert "has no classes" in complaint(tmp_path, include_classes="cat")


@pytest.mark.parametrize("val", ["val", "valid", "validation", "VAL"])
def test_parts_are_honoured(val: str, tmp_path: Path):
    for part, number in (("train", 12), (val, 5), ("test", 3)):
        for level in range(number):
            write(tmp_path / part / str(level % 2) / f"{level}.png", level)
    data = ready(tmp_path)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [12, 5, 3]
    assert data.class_names == ("0", "1")


def test_parts_that_are_missing_are_held_out(tmp_path: Path):
    for level in range(100):
        write(tmp_path / "train" / str(level % 2) / f"{level}.png", level)
    data = ready(tmp_path, val_size=20, test_size=10)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [70, 20, 10]
    assert data.part("val").labels.bincount().tolist() == [10, 10]


def test_two_folders_of_one_part(tmp_path: Path):
    for part in ("train", "val", "valid"):
        write(tmp_path / part / "0.png", 0)
    assert "has two folders of one part: train, val, valid" in complaint(tmp_path)


def test_links_are_followed(classes: Path, tmp_path: Path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "kitten").symlink_to(classes / "cat")
    write(tmp_path / "linked" / "pup" / "0.png", 0)
    data = ready(tmp_path / "linked", val_size=0, test_size=0)
    assert data.part("train").labels.bincount().tolist() == [20, 1]
    (tmp_path / "linked" / "pup" / "1.png").symlink_to(tmp_path / "nowhere.png")
    assert "1 of 22 images cannot be read: pup/1.png" in complaint(tmp_path / "linked")


def test_a_class_may_be_called_test(tmp_path: Path):
    for name in ("test", "train", "plane"):
        write(tmp_path / name / "0.png", 0)
    assert ready(tmp_path).class_names == ("plane", "test", "train")


def test_the_split_is_the_seeds(classes: Path):
    first, again, other = (ready(classes, split_seed=seed) for seed in (0, 0, 1))
    assert levels(first, "val") == levels(again, "val") != levels(other, "val")
    without_cats = ready(classes, exclude_classes="cat")
    for part in ("train", "val", "test"):
        assert levels(without_cats, part) == [level for level in levels(first, part) if level % 3]


# --- tables ---


@pytest.mark.parametrize("name", ["metadata.csv", "labels.jsonl"])
def test_a_table_gives_labels(name: str, tabled: tuple[Path, list[dict[str, Any]]]):
    folder, rows = tabled
    table(folder, rows, name)
    data = ready(folder, label="colour")
    assert data.class_names == ("blue", "red")
    assert data.part("train").labels.tolist() == [1 - level % 2 for level in levels(data, "train")]
    several = ready(folder, label=["colour", "shape"], include_classes="red bar")
    assert several.class_names[:3] == ("blue bar", "blue cross", "blue ring")
    assert {level % 6 for level in levels(several, "train")} == {4}


@pytest.mark.parametrize("name", ["metadata.csv", "labels.jsonl"])
def test_rows_with_certain_attributes_are_kept(name: str, tabled: tuple[Path, list[dict[str, Any]]]):
    folder, rows = tabled
    table(folder, [row | {"glasses": number % 5 == 0} for number, row in enumerate(rows)], name)
    data = ready(folder, label="colour", where={"glasses": False, "shape": ["ring", "BAR"]}, val_size=0, test_size=0)
    expected = {number for number in range(30) if number % 5 and number % 3 < 2}
    assert set(levels(data, "train")) == expected
    assert "data.where: no row of" in complaint(folder, label="colour", where={"glasses": "maybe"})
    assert "has no column 'hat'" in complaint(folder, label="colour", where={"hat": True})


def test_parts_with_a_table_each(tmp_path: Path):
    for part, count in (("train", 8), ("test", 4)):
        for level in range(count):
            write(tmp_path / part / f"{level}.png", level)
        table(tmp_path / part, [{"file": f"{level}.png", "kind": level % 2} for level in range(count)], "kinds.csv")
    for given in (None, "kinds.csv"):
        data = ready(tmp_path, table=given, val_size=2)
        assert [len(data.part(part)) for part in ("train", "val", "test")] == [6, 2, 4]
        assert data.class_names == ("0", "1")


def test_the_column_called_label_is_the_label(tabled: tuple[Path, list[dict[str, Any]]]):
    folder, rows = tabled
    table(folder, [{"path": row["file_name"], "Label": row["shape"], "weight": 1} for row in rows])
    assert ready(folder).class_names == ("bar", "cross", "ring")


def test_captions_come_in_place_of_labels(tabled: tuple[Path, list[dict[str, Any]]]):
    folder, rows = tabled
    table(folder, rows)
    data = ready(folder, caption="text", label=[], batch_size=8)
    images, captions = next(iter(data.train_dataloader()))
    assert [rows[level]["text"] for level in images[:, 0, 0, 0].tolist()] == captions
    assert data.class_names == ()
    assert data.on_after_batch_transfer((images, captions), 0)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"which column is the label\? Set data.label to some of text, colour, shape"),
        ({"label": "size"}, "has no column 'size'; it has text, file_name, colour, shape"),
        ({"label": "colour", "caption": "words"}, "data.caption: .* has no column 'words'"),
        ({"table": "other.csv"}, "there is no .*other.csv"),
    ],
)
def test_columns_that_are_not_there(settings: dict[str, Any], said: str, tabled: tuple[Path, list[dict[str, Any]]]):
    folder, rows = tabled
    table(folder, rows)
    with pytest.raises(SettingError, match=said):
        ready(folder, **settings)


def test_tables_that_are_wrong(tabled: tuple[Path, list[dict[str, Any]]]):
    folder, rows = tabled
    table(folder, [*rows, {**rows[0], "file_name": "images/30.png"}, {**rows[0], "file_name": "x.png"}])
    assert "names 2 files that are missing: 30.png, x.png" in complaint(folder, label="shape")
    table(folder, [{"name": "nothing.png"}])
    assert "no column names files" in complaint(folder)
    (folder / "metadata.csv").write_text("file_name,label\nimages/0.png\n")
    assert "row 1 has other columns" in complaint(folder)
    (folder / "metadata.csv").write_bytes(b"")
    assert "is no table of rows" in complaint(folder)
    (folder / "second.csv").write_text("")
    assert "has 2 tables" in complaint(folder)


# --- sizes and channels ---


def test_images_of_several_sizes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for number, size in enumerate([(8, 8), (16, 32), (30, 10)]):
        write(tmp_path / f"{number}.png", 200, size)
    assert "has images of 3 sizes, 8x8 to 30x10: set data.image_size" in complaint(tmp_path)
    with caplog.at_level("INFO"):
        cropped = ready(tmp_path, image_size=12)
    assert "images of 8x8 to 30x10 are resized and cropped in the middle: 12x12" in caplog.text
    assert cropped.part("train").images.unique().tolist() == [200]
    padded = ready(tmp_path, image_size=(12, 16), fit="pad")
    assert padded.image_shape == (1, 12, 16)
    small, wide, high = padded.part("train").images[:, 0]
    assert (small[2:10, 4:12] == 200).all()  # never enlarged
    assert int(small.sum()) == 64 * 200
    assert (wide.sum(1) > 0).sum() == 8
    assert (high.sum(0) > 0).sum() == 4


def test_colour_where_one_image_has_it(tmp_path: Path):
    for number, mode in enumerate(["L", "LA", "P", "RGB"]):
        write(tmp_path / f"{number}.png", 50 * number, mode=mode)
    assert ready(tmp_path).image_shape == (3, 8, 8)
    grey = ready(tmp_path, channels=1)
    assert grey.image_shape == (1, 8, 8)
    assert levels(grey, "train") == [0, 50, 100, 150]
    (tmp_path / "3.png").unlink()
    assert ready(tmp_path).image_shape == (1, 8, 8)


@pytest.mark.parametrize("image_size", [0, [8], [8, 8, 8]])
def test_sizes_that_cannot_be(image_size: Any, classes: Path):
    assert "data.image_size is" in complaint(classes, image_size=image_size)


def test_random_crops_in_training_and_the_middle_elsewhere(tmp_path: Path):
    pixels = np.arange(12 * 12, dtype=np.uint8).reshape(12, 12)
    for number in range(40):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    data = ready(tmp_path, crop=4, batch_size=20)
    assert data.image_shape == (1, 8, 8)
    data.trainer = SimpleNamespace(training=False)  # type: ignore[assignment]
    middle = pixels[2:10, 2:10] / 127.5 - 1
    assert np.allclose(data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[0][0, 0], middle)
    assert (data.part("train").images[:, 0].numpy() == pixels[2:10, 2:10]).all()
    data.trainer = None
    images = next(iter(data.train_dataloader()))[0]
    assert images.shape[-1] == 12
    cropped = ((data.on_after_batch_transfer((images, torch.zeros(20)), 0)[0] + 1) * 127.5).round()[:, 0]
    corners = {(int(image[0, 0]) // 12, int(image[0, 0]) % 12) for image in cropped}
    assert len(corners) > 5
    assert all(row <= 4 and column <= 4 for row, column in corners)
    for image in cropped:
        row, column = int(image[0, 0]) // 12, int(image[0, 0]) % 12
        assert np.array_equal(image.numpy(), pixels[row : row + 8, column : column + 8])


# --- files that cannot be read ---


def test_all_unreadable_files_are_listed_in_one_error(damaged: Path):
    said = complaint(damaged)
    assert "3 of 63 images cannot be read" in said
    for name in ("cut.png", "empty.jpg", "text.png", "data.skip_unreadable true"):
        assert name in said


@pytest.mark.parametrize("memory_share", [0.25, 0.0])
def test_unreadable_files_can_be_skipped(memory_share: float, damaged: Path, caplog: pytest.LogCaptureFixture):
    for _ in range(2):
        with caplog.at_level("INFO"):
            data = ready(damaged, skip_unreadable=True, memory_share=memory_share)
        assert "They are skipped" in caplog.text
        assert sum(len(data.part(part)) for part in ("train", "val", "test")) == 60
    assert "3 of 63" in complaint(damaged, memory_share=memory_share)


def test_nothing_that_can_be_read(tmp_path: Path):
    (tmp_path / "0.png").write_text("hello")
    assert "1 of 1 images cannot be read" in complaint(tmp_path, skip_unreadable=True)
    assert "1 of 1 images cannot be read" in complaint(tmp_path, skip_unreadable=True, image_size=8)


def test_folders_that_are_no_data_set(tmp_path: Path):
    assert "there is no folder" in complaint(tmp_path / "nowhere")
    assert "there are no image files" in complaint(tmp_path)
    write(tmp_path / "0.png", 0)
    write(tmp_path / "cat" / "1.png", 0)
    assert "has images in it (0.png) and in subfolders" in complaint(tmp_path)
    assert "names a column" in complaint(tmp_path, label="colour")


def test_classes_without_a_training_image(tmp_path: Path):
    for name in ("train/cat/0.png", "test/cat/0.png", "test/dog/0.png"):
        write(tmp_path / name, 0)
    assert "no training image of dog" in complaint(tmp_path)


# --- settings that exclude each other ---


def test_a_number_to_hold_out_where_there_is_a_part_for_it(tmp_path: Path):
    for part in ("train", "val", "test"):
        for level in range(4):
            write(tmp_path / part / f"{level}.png", level)
    for setting in ("val_size", "test_size"):
        assert f"data.{setting} is set, but ImageFolder" in complaint(tmp_path, **{setting: 1})


def test_a_network_that_is_told_classes_cannot_learn_from_captions(tabled: tuple[Path, list[dict[str, Any]]], dng: Dng):
    folder, rows = tabled
    table(folder, rows)
    settings = ["--model.net.channels=[8]", "--trainer.max_steps=1", f"--trainer.default_root_dir={folder / 'logs'}"]
    told = ["--data.caption=text", "--data.label=colour", "--model.net.patch=1", f"--data.root={folder}"]
    with pytest.raises(SystemExit) as ended:
        dng("fit", "--config=image_folder.yaml", *settings, *told)
    assert ended.value.code == 2
    dng("fit", "--config=image_folder.yaml", *settings, *told, "--model.net.num_classes=0")
    assert (folder / "logs" / "model.ckpt").exists()
