"""Decoded images in a mapped file, also with several processes."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_files import complaint, ready, write
from running import QUIET, Dng, DngProcess

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
