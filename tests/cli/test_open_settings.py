"""What is chosen where a configuration leaves the network and the length of a training open."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from running import Dng

from dng_lightning.__main__ import main, run
from dng_lightning.cli import open_settings
from dng_lightning.errors import SettingError
from dng_lightning.modules import ClassifierModule, DiffusionModule
from dng_lightning.networks import ImageClassifier, UNet
from dng_lightning.storage import resources

TINY = ["--trainer.limit_val_batches=1", "--data.val_size=6", "--data.batch_size=16"]


@pytest.mark.parametrize(
    "sides", [[8, 8], [16, 16], [28, 28], [32, 32], [32, 64], [64, 64], [96, 96], [128, 128], [256, 256]]
)
def test_networks_for_images_of_every_size(sides: list[int]):
    chosen = open_settings.unet_of(sides, 1000)
    with torch.device("meta"):
        net = UNet(3, 5, **chosen)
        t = torch.zeros(1, dtype=torch.long)
        assert net(torch.zeros(1, 3, *sides), t).shape == (1, 3, *sides)
    assert 4 <= max(sides) / net.multiple <= 16  # at the coarsest level
    assert sum(weight.numel() for weight in net.parameters()) < 40e6
    with torch.device("meta"):
        judge = ImageClassifier(3, 5, **open_settings.classifier_of(3, sides))
        assert judge.eval()(torch.zeros(2, 3, *sides)).shape == (2, 5)


def test_sides_that_cannot_be_halved_are_one_line():
    with pytest.raises(SettingError, match=r"set data\.image_size to \[32, 56\], and data\.fit to pad"):
        open_settings.unet_of([30, 50], 1000)


def test_steps_grow_with_the_images():
    steps = [open_settings.steps_of([32, 32], count, False) for count in (1, 1000, 10_000, 50_000)]
    assert steps == [500, 1000, 3000, 7000]
    assert open_settings.steps_of([64, 64], 10_000, False) == 6500
    assert open_settings.steps_of([32, 32], 10_000, True) == 800


@pytest.mark.parametrize("network", [UNet, ImageClassifier])
def test_python_must_say_what_it_wants(network: Any):
    for name in ("image_channels", "num_classes", "channels"):
        with pytest.raises(SettingError, match="is only for the configuration of dng fit"):
            network(**{"image_channels": 1, "num_classes": 2, "channels": [8]} | {name: None})


@pytest.fixture
def photos(fake_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is empty; the folder of three classes of photographs of 16x16 pixels."""
    monkeypatch.chdir(tmp_path)
    return fake_mnist.parent / "photos"


@pytest.mark.parametrize(
    ("name", "kind"), [("image_folder", DiffusionModule), ("image_folder_classifier", ClassifierModule)]
)
def test_a_training_of_ones_own_images(name: str, kind: Any, photos: Path, dng: Dng, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        dng("fit", f"--config={name}.yaml", f"--data.root={photos}", *TINY, "--trainer.max_steps=2")
    (line,) = re.findall("For 60 images of 3x16x16 in 3 classes on cpu: (.*)", caplog.text)
    assert "model.net.num_classes 3" in line
    assert "trainer.max_steps" not in line  # it is given
    (folder,) = Path("logs").iterdir()
    net = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["net"]["init_args"]
    assert None not in net.values()
    loaded = kind.load(str(folder))
    assert (loaded.image_shape, loaded.class_names) == ((3, 16, 16), ("cat", "dog", "horse"))
    assert loaded.net.num_classes == net["num_classes"] == 3


def test_the_saved_settings_run_again(photos: Path, dng: Dng):
    tiny = ["--model.net.channels=[8]", "--trainer.max_steps=1", "--trainer.callbacks=[{class_path: Export}]"]
    dng("fit", "--config=image_folder.yaml", f"--data.root={photos}", *TINY, *tiny)
    saved = Path("logs/image-folder/config.yaml")
    dng("fit", f"--config={saved}", "--trainer.default_root_dir=again")
    assert Path("again/model.ckpt").exists()


def test_the_length_is_chosen_where_none_is_given():
    def closed(**trainer: Any) -> Any:
        class Settings(dict):  # as jsonargparse's
            __getattr__ = dict.__getitem__
            __setattr__ = dict.__setitem__

        net = Settings(class_path="UNet", init_args=Settings(image_channels=None, num_classes=None, channels=[8]))
        model = Settings(init_args=Settings(net=net))
        usual = {"max_steps": -1, "max_epochs": None, "check_val_every_n_epoch": 1}
        usual |= {"max_time": None, "precision": "32-true", "accelerator": "cpu"}
        settings = Settings(model=model, trainer=Settings(usual | trainer), data=Settings(init_args=Settings()))
        data = SimpleNamespace(training_images=4000, batch=80, image_shape=(1, 32, 32), class_names=("a", "b"))
        said = open_settings.close(settings, data, lambda net: torch.nn.Identity())  # type: ignore[arg-type]
        assert ("trainer.max_steps" in said) == (settings.trainer.max_steps not in {*trainer.values(), -1})
        return settings.trainer.max_steps, settings.trainer.check_val_every_n_epoch

    assert closed() == (2000, 4)  # forty epochs
    assert closed(check_val_every_n_epoch=3) == (2000, 3)
    assert closed(max_epochs=3) == (-1, 1)
    assert closed(max_steps=7) == (7, 1)


@pytest.mark.parametrize(("seconds", "steps", "is_narrow"), [(1000, 8000, False), (100, 1400, False), (10, 140, True)])
def test_the_length_follows_from_the_time(
    seconds: int, steps: int, is_narrow: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of 60 small images 500 steps are usual."""
    monkeypatch.setattr(open_settings, "seconds_a_step", lambda *_: 0.05)
    monkeypatch.setattr(open_settings, "LONGEST", 16)
    given = f"--trainer.max_time=00:00:{seconds // 60:02}:{seconds % 60:02}"
    config = yaml.safe_load(printed_config(photos, given, monkeypatch))
    assert config["trainer"]["max_steps"] == steps
    assert (config["model"]["init_args"]["net"]["init_args"]["channels"] == [32, 64]) == is_narrow


def printed_config(photos: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The configuration of a training that is stopped before it begins."""
    with monkeypatch.context() as patch:
        patch.setattr("dng_lightning.cli.dng_cli.DNGCLI._run_subcommand", lambda *_: None)
        config = resources.config("image_folder")
        cli = run(["fit", f"--config={config}", f"--data.root={photos}", "--trainer.accelerator=cpu", given])
    text: str = cli.parser.dump(cli.config, skip_none=False)
    return str(yaml.safe_dump(yaml.safe_load(text)["fit"]))


def test_a_step_is_timed_as_it_is_trained():
    images, cpu = (4, 3, 16, 16), torch.device("cpu")
    net = UNet(3, 5, **open_settings.unet_of([16, 16], 100))
    assert 0 < open_settings.seconds_a_step(net, images, False, cpu) < 60
    judge = ImageClassifier(3, 5, **open_settings.classifier_of(3, [16, 16]))
    assert 0 < open_settings.seconds_a_step(judge, images, True, cpu) < 60


@pytest.mark.parametrize(
    ("sides", "count", "device", "batch"),
    [
        ([28, 28], 60_000, "cpu", 128),
        ([64, 64], 2000, "cpu", 64),
        ([64, 64], 2000, "cuda", 128),
        ([256, 256], 9000, "cpu", 16),
        ([64, 64], 60, "cpu", 8),
        ([64, 64], 1, "cpu", 1),
    ],
)
def test_batches_fit_images_and_device(sides: list[int], count: int, device: str, batch: int):
    assert open_settings.batch_of(sides, count, torch.device(device)) == batch


def test_a_time_that_is_none():
    assert open_settings.seconds_of(None) == 0
    assert open_settings.seconds_of("01:00:00:02") == 86402
    with pytest.raises(SettingError, match="give days:hours:minutes:seconds"):
        open_settings.seconds_of("an hour")


def test_a_classifier_needs_classes(photos: Path, capsys: pytest.CaptureFixture[str]):
    config = "--config=image_folder_classifier.yaml"
    with pytest.raises(SystemExit):
        main(["fit", config, f"--data.root={photos / 'cat'}", "--trainer.accelerator=cpu"])
    assert "has no classes: a classifier needs two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--data.root=nowhere"], "there is no folder"),
        (["--data=Seeds"], "set data to a data set of images"),
        (["--data.image_size=30"], "set data.image_size to [32, 32]"),
        (["--data.include_classes=zebra"], "there is no class 'zebra'"),
        (["--data.val_size=70"], "data.val_size is 70"),
    ],
)
def test_mistakes_are_one_line(settings: list[str], said: str, photos: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config=image_folder.yaml", f"--data.root={photos}", "--trainer.accelerator=cpu", *settings])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dng: error")]
    assert said in line
