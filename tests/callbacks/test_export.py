"""The exported file needs no code, holds no optimiser, and predicts what the trained module predicts."""

import json
import shutil
from pathlib import Path

import torch
import yaml
from running import QUIET

from dng_lightning.__main__ import run
from dng_lightning.data import Digits
from dng_lightning.modules import ClassifierModule, DiffusionModule
from dng_lightning.storage import resources


def test_it_predicts_what_the_trained_module_predicts(tmp_path: Path):
    net = ["--model.net.channels=[8]", "--model.net.attention=[]", "--data.exclude_classes=7"]
    length = ["--trainer.max_steps=5", "--trainer.limit_val_batches=1", "--trainer.check_val_every_n_epoch=1"]
    cli = run(
        [
            "fit",
            f"--config={resources.config('digits')}",
            *QUIET,
            *net,
            *length,
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    trained = cli.model.eval()
    loaded = DiffusionModule.load(str(tmp_path))
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        for level in (trained.schedule.level(t) for t in (1, 10, 500, 1000)):
            assert (trained(x, level, labels) - x / level.alpha).abs().max() > 0  # the output is not 0
            assert torch.equal(loaded(x, level, labels), trained(x, level, labels))
            assert torch.equal(loaded(x, level), trained(x, level))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert (loaded.image_shape, loaded.class_names) == (Digits.image_shape, Digits.class_names)
    assert loaded.seen_classes == (0, 1, 2, 3, 4, 5, 6, 8, 9)


def test_it_holds_no_code_and_no_optimiser(tiny_checkpoint: Path):
    stored = torch.load(tiny_checkpoint / "model.ckpt", weights_only=True)
    assert not {"optimizer_states", "lr_schedulers", "loops", "callbacks"} & set(stored)
    size = sum(weight.numel() * weight.element_size() for weight in stored["state_dict"].values())
    assert (tiny_checkpoint / "model.ckpt").stat().st_size < 2 * size
    average = torch.load(tiny_checkpoint / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(stored["state_dict"][name], average[name]) for name in average)
    assert not list(tiny_checkpoint.glob("*.part"))


def test_half_precision_takes_half_the_space(tmp_path: Path):
    net = ["--model.net.channels=[16]", "--model.net.attention=[]", "--trainer.max_steps=5"]
    callbacks = ["--trainer.callbacks=[{class_path: Export, init_args: {half: true}}]", "--trainer.limit_val_batches=0"]
    folder = f"--trainer.default_root_dir={tmp_path}"
    trained = run(["fit", f"--config={resources.config('digits')}", *QUIET, *net, *callbacks, folder]).model.eval()
    size = sum(weight.numel() * weight.element_size() for weight in trained.parameters())
    assert 0.5 * size < (tmp_path / "model.ckpt").stat().st_size < 0.75 * size
    loaded = DiffusionModule.load(str(tmp_path))
    for name, weight in loaded.state_dict().items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, trained.state_dict()[name], rtol=2**-11, atol=1e-7)
    x = torch.randn(4, 1, 8, 8)
    for level in (trained.schedule.level(t) for t in (1, 10, 500, 1000)):
        assert (loaded(x, level) - trained(x, level)).abs().max() < 0.01 * trained(x, level).abs().max()


def test_metrics_and_config_stand_beside_it(tiny_checkpoint: Path):
    metrics = json.loads((tiny_checkpoint / "metrics.json").read_text())
    assert metrics["steps"] == 60
    assert 0 < metrics["val/loss"] < 1
    config = yaml.safe_load((tiny_checkpoint / "config.yaml").read_text())
    assert config["model"]["init_args"]["net"]["init_args"]["channels"] == [16]
    assert config["seed_everything"] == 0


def test_the_folder_of_a_shipped_checkpoint_is_such_a_folder():
    loaded = ClassifierModule.load("digits-classifier")
    stored = torch.load(resources.checkpoint("digits-classifier"), weights_only=True)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in stored["state_dict"].items())
    for name in resources.checkpoints():
        beside = {path.name for path in resources.checkpoint(name).parent.iterdir()}
        assert {"config.yaml", "metrics.json"} <= beside, name
        assert beside & {"model.ckpt", "model_index.json"}, name


def test_a_resumed_training_that_had_ended_exports_what_is_missing(tiny_checkpoint: Path, tmp_path: Path):
    """As one does that ends between its last checkpoint and the export; the averaged weights, and once."""
    net = ["--model.net.channels=[16]", "--model.net.attention=[]", "--model.prediction=v", "--trainer.max_steps=60"]
    last = tiny_checkpoint / "checkpoints" / "last.ckpt"
    args = [*net, f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={last}"]
    run(["fit", f"--config={resources.config('digits')}", *QUIET, *args])
    folders = tmp_path, tiny_checkpoint
    found, expected = (torch.load(folder / "model.ckpt", weights_only=True)["state_dict"] for folder in folders)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert metrics[0] == metrics[1]
    before = (tmp_path / "model.ckpt").stat().st_mtime_ns
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    shutil.copy(last, tmp_path / "checkpoints")
    run(["fit", f"--config={resources.config('digits')}", *QUIET, *args[:-1], "--ckpt_path=last"])
    assert (tmp_path / "model.ckpt").stat().st_mtime_ns == before
