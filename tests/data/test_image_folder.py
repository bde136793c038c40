"""Folders of images: layouts, parts, sizes, files that cannot be read, and decoded images in a mapped file."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import QUIET, Dng, DngProcess

from dng_lightning.data import ImageFolder
from dng_lightning.errors import SettingError


def write(path: Path, level: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    """An image of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size[::-1], level).convert(mode).save(path)


def ready(root: Path, **settings: Any) -> ImageFolder:
    data = ImageFolder(str(root), **settings)
    data.prepare_data()
    data.setup()
    return data


def levels(data: ImageFolder, part: str) -> list[int]:
    return data.part(part).images[:, 0, 0, 0].tolist()


def complaint(root: Path, **settings: Any) -> str:
    with pytest.raises(SettingError) as caught:
        ready(root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Sixty images of three classes, each of another level, which the name says."""
    for number in range(60):
        write(tmp_path / "photos" / ("cat", "dog", "wild horse")[number % 3] / f"{number:02}.png", number)
    return tmp_path / "photos"


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


def table(folder: Path, rows: list[dict[str, Any]], name: str = "metadata.csv") -> None:
    with (folder / name).open("w", newline="") as file:
        if name.endswith("csv"):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def tabled(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    rows = []
    for number in range(30):
        name = f"images/{number}.png"
        write(tmp_path / name, number)
        kind = {"colour": ("red", "blue")[number % 2], "shape": ("ring", "bar", "cross")[number % 3]}
        rows.append({"text": f"a {kind['colour']}, {kind['shape']}", "file_name": name, **kind})
    return tmp_path, rows


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


@pytest.fixture
def damaged(classes: Path) -> Path:
    content = (classes / "cat" / "00.png").read_bytes()
    (classes / "cat" / "cut.png").write_bytes(content[:-30])
    (classes / "dog" / "empty.jpg").write_bytes(b"")
    (classes / "dog" / "text.png").write_text("hello")
    return classes


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


# --- decoded images in a file ---


def test_a_mapped_file_gives_the_same_batches(classes: Path):
    mapped, held = (
        ready(classes, memory_share=0, include_classes=["cat", "dog"]),
        ready(classes, include_classes=["cat", "dog"]),
    )
    (file,) = (classes / ".dng_lightning").glob("*.npy")
    assert file.stat().st_size > 60 * 64
    for part in ("train", "val", "test"):
        assert torch.equal(mapped.part(part).images, held.part(part).images)
        assert torch.equal(mapped.part(part).labels, held.part(part).labels)
    for data in (mapped, held):
        torch.manual_seed(0)
        data.batches = [images for images, _ in data.train_dataloader()]  # type: ignore[attr-defined]
    assert all(torch.equal(*pair) for pair in zip(mapped.batches, held.batches, strict=True))  # type: ignore[attr-defined]


def test_the_mapped_file_is_made_once_for_the_same_files_and_settings(classes: Path, tmp_path: Path):
    folder = tmp_path / "cache"

    def files(**settings: Any) -> dict[str, int]:
        ready(classes, memory_share=0, cache=str(folder), **settings)
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}

    first = files()
    assert files(include_classes="cat", val_size=3) == first  # nothing that is chosen among the decoded images
    assert len(files(image_size=4)) == 2
    os.utime(classes / "cat" / "00.png", ns=(1, 1))
    assert len(files()) == 3
    write(classes / "cat" / "60.png", 60)
    assert len(files()) == 4
    assert not list(folder.glob("*.part"))


def test_the_headers_of_many_files_are_read_once(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[object] = []
    monkeypatch.setattr("dng_lightning.data.store.upright_size", lambda image: seen.append(image) or image.size[::-1])
    assert ready(classes).image_shape == ready(classes).image_shape == (1, 8, 8)
    assert len(seen) == 120  # few images are looked at each time, and leave nothing behind
    assert not (classes / ".dng_lightning").exists()
    monkeypatch.setattr("dng_lightning.data.store.MANY", 60)
    seen.clear()
    for share in (0.0, 0.0, 0.25):
        assert ready(classes, memory_share=share).image_shape == (1, 8, 8)
    assert len(seen) == 60
    assert ready(classes, image_size=4).image_shape == (1, 4, 4)
    assert len(seen) == 60

    write(classes / "cat" / "00.png", 200, (8, 8), "RGB")  # a changed file is found
    assert ready(classes, memory_share=0.0).image_shape == (3, 8, 8)
    assert len(seen) == 120
    write(classes / "cat" / "00.png", 200, (8, 12))
    assert "images of 2 sizes, 8x8 to 8x12" in complaint(classes)
    assert not list((classes / ".dng_lightning").glob("*.part"))

    for file in (classes / ".dng_lightning").glob("*.headers.json"):
        file.write_text("[[[8")  # damaged: read anew
    assert "images of 2 sizes, 8x8 to 8x12" in complaint(classes)
    (tmp_path / "file").write_text("")
    in_a_file = str(tmp_path / "file" / "cache")
    assert ready(classes, image_size=8, cache=in_a_file).image_shape == (1, 8, 8)  # nowhere to keep them


def test_a_cache_that_cannot_be_written(classes: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    said = complaint(classes, memory_share=0, cache=str(tmp_path / "file" / "cache"))
    assert "cannot be used" in said
    assert "data.cache" in said


def test_an_interrupted_decoding_leaves_nothing(classes: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dng_lightning.data.store._fill", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ready(classes, memory_share=0)
    assert not list((classes / ".dng_lightning").iterdir())


# --- several processes ---


@pytest.mark.parametrize("memory_share", [0.25, 0.0])
def test_one_process_or_eight_have_the_same_batches(classes: Path, memory_share: float):
    def batches(world_size: int, rank: int, batch_size: int) -> list[set[int]]:
        data = ready(classes, batch_size=batch_size, memory_share=memory_share, val_size=0, test_size=0)
        progress = SimpleNamespace(current=SimpleNamespace(ready=0))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, fit_loop=loop)  # type: ignore[assignment]
        return [set(images[:, 0, 0, 0].tolist()) for images, _ in data.train_dataloader()]

    alone = batches(1, 0, 16)
    together = zip(*(batches(8, rank, 2) for rank in range(8)), strict=True)
    assert [set().union(*shares) for shares in together] == alone
    assert len(alone) == 3
    assert all(len(batch) == 16 for batch in alone)


@pytest.mark.slow
def test_two_processes_decode_once_and_train(classes: Path, dng_process: DngProcess, tmp_path: Path):
    tiny = ["--model.net.channels=[8]", "--data.batch_size=8", "--trainer.max_steps=2", "--trainer.limit_val_batches=1"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.callbacks=[{class_path: Export}]"]
    mapped = [f"--data.root={classes}", "--data.memory_share=0", f"--data.cache={tmp_path / 'cache'}"]
    done = dng_process("fit", "--config=image_folder.yaml", *QUIET, *tiny, *two, *mapped, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("kept in") == 1
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    assert not list((tmp_path / "cache").glob("*.part"))
    assert (tmp_path / "logs" / "image-folder" / "model.ckpt").exists()


def test_unreadable_files_end_a_training_before_it_writes(damaged: Path, dng: Dng, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        dng("fit", "--config=image_folder.yaml", f"--data.root={damaged}")
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be read" in line]
    assert line.startswith("dng: error: 3 of 63 images cannot be read")
    assert not (tmp_path / "logs").exists()


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
