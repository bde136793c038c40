"""Training on a stream of images whose length nobody says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_rows import NAMES, rows
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from running import Dng

from dng_lightning.data import HuggingFaceStream
from dng_lightning.data.pixels import to_uint8
from dng_lightning.errors import SettingError

pytestmark = pytest.mark.usefixtures("hugging_face_caches")


class Recorder(LightningModule):
    """Records the images and labels of each epoch, which its only weight ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[tuple[int, int]]] = {}

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        levels, labels = to_uint8(batch[0])[:, 0, 0, 0].tolist(), batch[1]
        labels = labels.tolist() if isinstance(labels, torch.Tensor) else labels
        self.seen.setdefault(self.current_epoch, []).extend(zip(levels, labels, strict=True))
        return self.weight * 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def train(root: Path, folder: Path, epochs: int = 4, last: Path | None = None, **settings: Any) -> dict[int, Any]:
    """The images and labels of each epoch; there are checkpoints of each second step in the folder."""
    settings = {"batch_size": 4, "first": 20, "val_size": 2, "test_size": 2} | settings
    model, data = Recorder(), HuggingFaceStream(str(root), **settings)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=[keep], **quiet).fit(model, data, ckpt_path=last)
    return model.seen


def levels(epoch: list[tuple[int, int]]) -> list[int]:
    return sorted(level for level, _ in epoch)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    rows(60).to_parquet(str(tmp_path / "data.parquet"))
    return tmp_path / "data.parquet"


def test_each_epoch_has_the_next_images(parquet: Path, tmp_path: Path):
    seen = train(parquet, tmp_path)
    assert all(label == level % 3 for epoch in seen.values() for level, label in epoch)
    assert set(levels(seen[0])) < set(range(20))
    assert [levels(seen[epoch]) for epoch in (1, 2)] == [list(range(20, 36)), list(range(36, 52))]
    assert levels(seen[3]) == [*range(20, 28), *range(52, 60)]  # after the last image those of the second epoch
    assert [level for level, _ in seen[1]] != levels(seen[1])  # shuffled


def test_held_out_images_are_never_trained_on(parquet: Path, tmp_path: Path):
    seen = train(parquet, tmp_path, 8)
    data = HuggingFaceStream(str(parquet), first=20, val_size=2, test_size=2)
    data.setup()
    held = {int(level) for part in ("val", "test") for level in data.part(part).images[:, 0, 0, 0]}
    assert len(held) == 4
    assert not held & {level for epoch in seen.values() for level, _ in epoch}


def test_a_resumed_training_has_the_same_images(parquet: Path, tmp_path: Path):
    whole = train(parquet, tmp_path / "whole")
    rest = train(parquet, tmp_path / "rest", last=tmp_path / "whole" / "step=6.ckpt")
    assert rest == {1: whole[1][8:], 2: whole[2], 3: whole[3]}


def test_filters_and_other_labels(parquet: Path, tmp_path: Path):
    seen = train(parquet, tmp_path, include_classes=["cat", "dog"])
    assert all(label == level % 3 < 2 for epoch in seen.values() for level, label in epoch)
    assert {len(epoch) // 4 for epoch in seen.values()} <= {2, 3}
    by_number = train(parquet, tmp_path, label="weight")
    assert all(label == level % 2 for epoch in by_number.values() for level, label in epoch)
    captions = train(parquet, tmp_path, caption="text")
    assert all(label == f"a {NAMES[level % 3]}, number {level}" for level, label in captions[2])


def test_a_short_stream_has_the_same_epochs(parquet: Path, tmp_path: Path):
    seen = train(parquet, tmp_path, 3, first=60)  # 56 to train on
    assert levels(seen[1]) == levels(seen[2])
    assert not set(levels(seen[1])) - set(range(60))


def test_a_label_that_the_first_images_lack(tmp_path: Path):
    rows(60, weight=[n // 25 for n in range(60)]).to_parquet(str(tmp_path / "data.parquet"))
    with pytest.raises(SettingError, match=r"the label 1 after its first images alone: raise data\.first"):
        train(tmp_path / "data.parquet", tmp_path, label="weight")


def test_an_epoch_without_images_is_one_line(tmp_path: Path):
    rows(60, kind=[n // 20 for n in range(60)]).to_parquet(str(tmp_path / "data.parquet"))
    with pytest.raises(SettingError, match="no image of the classes that are left in epoch 1: shuffle it"):
        train(tmp_path / "data.parquet", tmp_path, include_classes="cat")


def test_a_stream_that_breaks_off_is_one_line(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(self: HuggingFaceStream) -> Any:
        raise OSError("connection lost")
        yield

    monkeypatch.setattr(HuggingFaceStream, "_later_rows", broken)
    with pytest.raises(SettingError, match="cannot be read any further: connection lost"):
        train(parquet, tmp_path)


def test_fit(parquet: Path, tmp_path: Path, dng: Dng, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    net = "--model.net.channels=[8]", "--model.net.image_channels=1", "--model.net.num_classes=3"
    data = "--data=HuggingFaceStream", f"--data.root={parquet}", "--data.first=20", "--data.batch_size=8"
    dng("fit", "--config=image_folder.yaml", *data, *net, "--trainer.max_steps=5")
    assert (tmp_path / "logs" / "image-folder" / "model.ckpt").is_file()
