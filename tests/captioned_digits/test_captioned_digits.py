import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from running import Dng, fit_settings
from torch import Tensor, nn

from dng_lightning.data import MNIST
from dng_lightning.errors import SettingError
from scripts.captioned_digits import CaptionedDigits, digit_rendering
from scripts.captioned_digits.attributes import VALUES, Attributes
from scripts.captioned_images.data import Captioned


def ready(root: Path, **settings: object) -> CaptionedDigits:
    data = CaptionedDigits(str(root), val_size=20, **settings)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def arrived(data: CaptionedDigits, part: str = "test", epoch: int | None = None) -> list[Captioned]:
    """The batches of a part as they reach the network, of a training in that epoch if one is given."""
    loader = getattr(data, f"{part}_dataloader")()
    progress = SimpleNamespace(total=SimpleNamespace(completed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    training = epoch is not None
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        training=training, current_epoch=epoch, fit_loop=loop, global_rank=0
    )
    batches = [data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0) for batch in loader]
    data.trainer = None
    return batches


# --- batches ---


def test_batches_of_everything(mnist_root: Path):
    batches = arrived(ready(mnist_root, batch_size=32))
    assert [len(batch.captions) for batch in batches] == [32, 8]
    images, captions, attributes = batches[0]
    assert (images.shape, images.dtype) == ((32, 3, 32, 32), torch.float32)
    assert (float(images.min()), float(images.max())) == (-1, 1)
    assert (attributes.shape, attributes.dtype) == ((32, 4), torch.int64)
    assert attributes[:, 0].tolist() == [number % 10 for number in range(32)]
    assert all(isinstance(caption, str) for caption in captions)


def test_pictures_are_what_their_attributes_say(mnist_root: Path):
    data, grey = ready(mnist_root), MNIST(str(mnist_root), val_size=0)
    grey.setup()
    part = data.part("test")
    _, *drawn = part.labels.T
    assert part.images.equal(digit_rendering.draw(grey.part("test").images, *drawn))
    assert part.labels[:, 0].equal(grey.part("test").labels)


def test_captions_say_what_is_there(mnist_root: Path):
    values = {name: set(VALUES[name]) for name in ("colour", "background")}
    batch = arrived(ready(mnist_root, batch_size=40))[0]
    assert len(set(batch.captions)) > 20
    for caption, labels in zip(batch.captions, batch.attributes.tolist(), strict=True):
        for name, label in zip(VALUES, labels, strict=True):
            said = values.get(name, set()) & set(caption.replace(",", "").split())
            assert said <= {VALUES[name][label]}


def test_pairs_of_images_and_captions(mnist_root: Path):
    everything = arrived(ready(mnist_root))[0]
    images, captions = arrived(ready(mnist_root, label="caption"))[0]
    assert images.equal(everything.images)
    assert captions == everything.captions


@pytest.mark.parametrize("label", VALUES)
def test_labels_of_one_attribute(label: str, mnist_root: Path):
    data = ready(mnist_root, label=label)
    assert data.class_names == VALUES[label]
    assert data.seen_classes == list(range(len(VALUES[label])))
    images, labels = arrived(data)[0]
    everything = arrived(ready(mnist_root))[0]
    assert images.equal(everything.images)
    assert labels.equal(everything.attributes[:, list(VALUES).index(label)])


def test_labels_of_a_combination(mnist_root: Path):
    data = ready(mnist_root, label=["digit", "colour"], include_classes=Attributes(thickness="thin", colour="blue"))
    assert (len(data.class_names), data.class_names[7 * 7 + 5]) == (70, "7 blue")
    assert data.seen_classes == [7 * digit + 5 for digit in range(10)]
    assert len(data.pictures) == 40
    _, labels = arrived(data)[0]
    assert set(labels.tolist()) <= set(data.seen_classes)
    everything = arrived(ready(mnist_root, label=["digit", "colour"]))[0][1]
    attributes = arrived(ready(mnist_root))[0].attributes
    assert everything.equal(7 * attributes[:, 0] + attributes[:, 1])


def test_workers_change_nothing(mnist_root: Path):
    alone, workers = (arrived(ready(mnist_root, num_workers=workers), "val")[0] for workers in (0, 1))
    assert alone.images.equal(workers.images)
    assert alone.captions == workers.captions


# --- what is drawn at random ---


def test_pictures_are_the_same_in_every_run(mnist_root: Path):
    torch.manual_seed(1)
    first = ready(mnist_root)
    torch.manual_seed(2)
    second = ready(mnist_root)
    for part in ("train", "val", "test"):
        assert first.part(part).images.equal(second.part(part).images)
        assert first.part(part).labels.equal(second.part(part).labels)
    assert arrived(first, "val")[0].captions == arrived(second, "val")[0].captions
    labels = torch.arange(6)[:, None].repeat(1, 4) % 2
    assert first.captions(labels, torch.arange(6), 0) != second.captions(labels, torch.arange(6), 0)


def test_captions_depend_on_the_seed_the_epoch_and_the_image_alone(mnist_root: Path):
    torch.manual_seed(1)
    data = ready(mnist_root)
    labels, indices = data.part("train").labels, torch.arange(180)
    first, second = (data.captions(labels, indices, epoch) for epoch in (0, 1))
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 140
    backwards = data.captions(labels.flip(0), indices.flip(0), 0)
    assert backwards[::-1] == first
    torch.manual_seed(1)
    data.setup()  # again, as a second `fit` does
    assert data.captions(labels, indices, 0) == first
    assert data.part("train").labels.equal(labels)
    said = {tuple(batch.captions) for epoch in (0, 1) for batch in arrived(data, "val", epoch)}
    assert len(said) == 2


def test_attributes_are_even_and_independent(real_data: Path):
    data = CaptionedDigits(str(real_data))
    data.setup()
    labels = data.part("train").labels
    for column, name in enumerate(VALUES):
        shares = labels[:, column].bincount(minlength=len(VALUES[name])) / len(labels)
        assert (shares * len(VALUES[name]) - 1).abs().max() < (0.15 if name == "digit" else 0.03)
    for a in range(4):
        for b in range(a):
            x, y = labels[:, a].double(), labels[:, b].double()
            assert torch.corrcoef(torch.stack([x, y]))[0, 1].abs() < 0.015
    held = data.part("val").labels
    assert len(held) == 5000
    assert ((held[:, 1].bincount() / 5000) - (labels[:, 1].bincount() / len(labels))).abs().max() < 0.002


class Listener(LightningModule):
    """Notes the captions that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.heard = nn.Linear(1, 1), []

    def training_step(self, batch: Captioned, batch_idx: int) -> Tensor:
        assert isinstance(batch, Captioned)
        self.heard += [
            (float(image.sum()), caption) for image, caption in zip(batch.images, batch.captions, strict=True)
        ]
        return self.layer(batch.images.mean().view(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_resumed_training_hears_the_same_captions(mnist_root: Path, tmp_path: Path):
    def train(steps: int, resumed: Path | None = None) -> Listener:
        torch.manual_seed(3)
        saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(max_steps=steps, callbacks=[saving], limit_val_batches=0, **quiet)  # type: ignore[arg-type]
        listener, data = Listener(), CaptionedDigits(str(mnist_root), batch_size=64, val_size=20)
        trainer.fit(listener, datamodule=data, ckpt_path=resumed)
        return listener

    whole = train(7).heard  # two batches an epoch
    assert len({caption for _, caption in whole[:128]}) > 80
    assert train(7, tmp_path / "step=4.ckpt").heard == whole[4 * 64 :]


# --- filters ---


def test_without_a_combination(mnist_root: Path):
    whole, less = ready(mnist_root), ready(mnist_root, exclude_classes=Attributes(digit=7, colour="red"))
    for part in ("train", "val", "test"):
        labels = whole.part(part).labels
        kept = ~((labels[:, 0] == 7) & (labels[:, 1] == 0))
        assert less.part(part).images.equal(whole.part(part).images[kept])
        assert less.part(part).labels.equal(labels[kept])


def test_several_filters(mnist_root: Path):
    wanted = [Attributes(thickness="thin", background="white"), Attributes(digit=3)]
    labels, kept, dropped = (
        ready(mnist_root, **given).part("train").labels
        for given in ({}, {"include_classes": wanted}, {"exclude_classes": wanted})
    )
    chosen = ((labels[:, 2] == 0) & (labels[:, 3] == 1)) | (labels[:, 0] == 3)
    assert 0 < chosen.sum() < len(labels)
    assert kept.equal(labels[chosen])
    assert dropped.equal(labels[~chosen])


def test_seen_classes_are_those_of_the_label():
    assert CaptionedDigits(label="colour", exclude_classes=Attributes(colour="red")).seen_classes == [1, 2, 3, 4, 5, 6]
    assert CaptionedDigits(label="colour", exclude_classes=Attributes(7, "red")).seen_classes == list(range(7))
    assert CaptionedDigits(label="digit", include_classes=[Attributes(4), Attributes(2, "red")]).seen_classes == [2, 4]
    assert (CaptionedDigits().seen_classes, CaptionedDigits().class_names) == ([], ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "size"}, "data.label is 'size': give all, each, caption, digit, colour"),
        ({"label": []}, r"data.label is \[\]: give all, each, caption, digit.* or a list of these"),
        ({"label": ["digit", "digit"]}, "data.label is"),
        ({"include_classes": Attributes(1), "exclude_classes": Attributes(2)}, "exclude each other"),
        ({"exclude_classes": Attributes()}, "data.exclude_classes leaves no picture"),
        ({"include_classes": []}, "data.include_classes leaves no picture"),
        ({"batch_size": 0}, "data.batch_size must be at least 1; got 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str):
    with pytest.raises(SettingError, match=message):
        CaptionedDigits(**settings)  # type: ignore[arg-type]


def test_missing_files_are_those_of_mnist(tmp_path: Path):
    with pytest.raises(SettingError, match=r"^no MNIST in [^\n]*: name the folder of its files with --data.root"):
        CaptionedDigits(str(tmp_path), download=False).setup()


# --- classifiers ---


def test_a_classifier_of_colours_from_the_command_line(dng: Dng, mnist_root: Path, tmp_path: Path, capsys):
    name, folder = "captioned_digits_classifier", tmp_path / "colour"
    settings = [f"--config={name}.yaml", f"--data.root={mnist_root}", "--data.label=colour", *fit_settings(name)]
    settings += ["--trainer.max_steps=2", "--trainer.max_epochs=1", f"--trainer.default_root_dir={folder}"]
    with pytest.raises(SystemExit):
        dng("fit", *settings)
    assert "has 10 classes, the data have 7: set its num_classes" in capsys.readouterr().err
    exclude = '--data.exclude_classes=[{"digit": 7, "colour": "red"}, {"colour": "blue"}]'
    dng("fit", *settings, "--model.net.num_classes=7", exclude)
    assert json.loads((folder / "metrics.json").read_text())["val/loss"] > 0


@pytest.mark.parametrize("wrong", ["--data.exclude_classes.colour=pink", "--data.label=size"])
def test_a_wrong_setting_on_the_command_line_is_one_line(wrong: str, dng: Dng, capsys):
    with pytest.raises(SystemExit):
        dng("fit", "--config=captioned_digits_classifier.yaml", wrong)
    message = capsys.readouterr().err.strip()
    assert message.startswith("dng: error: ")
    assert "\n" not in message
    assert wrong.partition("=")[2] in message
