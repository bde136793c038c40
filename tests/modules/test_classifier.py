import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from dng_lightning.__main__ import run
from dng_lightning.data import CIFAR10, MNIST, Digits
from dng_lightning.errors import SettingError
from dng_lightning.modules.classifier import ClassifierModule, random_shift
from dng_lightning.networks.classifier import ImageClassifier

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "digits_classifier.yaml")


def small_net() -> ImageClassifier:
    return ImageClassifier(1, 10, channels=[8, 16], features=12)


def trainer(folder: Path, **settings: object) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, enable_checkpointing=False, **(quiet | settings))  # type: ignore[arg-type]


def fit_by_command_line(folder: Path, *settings: str) -> Path:
    """Two epochs of the committed config with a smaller network; returns the checkpoint."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    small = ["--model.net.channels=[16,32]", "--trainer.max_epochs=2", f"--trainer.default_root_dir={folder}"]
    run(["fit", f"--config={CONFIG}", *quiet, *small, *settings])
    return folder / "checkpoints" / "last.ckpt"


# --- network ---


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 23)])
def test_any_image_size(shape: tuple[int, int, int]):
    net = ImageClassifier(shape[0], 7).eval()
    x = torch.randn(4, *shape)
    assert net(x).shape == (4, 7)
    assert net.features(x).shape == (4, net.num_features) == (4, 128)
    assert torch.equal(net(x), net.head(net.features(x)))


def test_the_network_is_small():
    assert sum(parameter.numel() for parameter in ImageClassifier(3, 10).parameters()) * 4 < 2e6


# --- augmentation ---


def test_shifted_images_are_windows_of_the_padded_image():
    images = torch.rand(64, 3, 6, 5)
    shifted = random_shift(images, 2)
    padded = nn.functional.pad(images, [2] * 4, value=-1.0)
    found = set()
    for before, after in zip(padded, shifted, strict=True):
        offsets = [(r, c) for r in range(5) for c in range(5) if torch.equal(before[:, r : r + 6, c : c + 5], after)]
        assert len(offsets) == 1  # all channels move together, and nothing else changes
        found |= set(offsets)
    assert len(found) > 15  # of 25: each image moves by itself


def test_no_shift_changes_nothing():
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(random_shift(images, 0), images)


# --- classify ---


def test_classify_is_in_evaluation_mode_and_full_precision():
    torch.manual_seed(0)
    module = ClassifierModule(small_net()).train()
    x = torch.randn(16, 1, 8, 8)
    running = module.net.state_dict()["blocks.0.1.running_mean"].clone()
    with torch.autocast("cpu", torch.bfloat16):
        labels, confidence = module.classify(x)
    assert module.net.training  # left as it was found
    assert torch.equal(module.net.state_dict()["blocks.0.1.running_mean"], running)
    expected, expected_labels = module.eval()(x).softmax(1).max(1)
    assert (labels.dtype, confidence.dtype) == (torch.int64, torch.float32)
    assert torch.equal(labels, expected_labels)
    assert torch.equal(confidence, expected)
    assert torch.equal(module.classify(x[:1])[0], labels[:1])


# --- training, checkpoints ---


def test_it_learns_and_its_checkpoint_rebuilds_it(tmp_path: Path):
    path = fit_by_command_line(tmp_path, "--trainer.max_epochs=5")
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    assert stored["net"]["class_path"].endswith("ImageClassifier")
    assert stored["net"]["init_args"]["channels"] == [16, 32]
    assert stored["scheduler"]["init_args"]["max_lr"] == 0.005

    module = ClassifierModule.load(str(path))
    assert module.class_names == Digits.class_names
    data = Digits()
    data.setup()
    images, truth = data.part("test").images, data.part("test").labels
    labels, _ = module.classify(images / 127.5 - 1)
    assert (labels == truth).float().mean() > 0.95
    (logged,) = trainer(tmp_path).test(module, data, verbose=False)
    assert logged["test/accuracy"] == pytest.approx((labels == truth).float().mean().item())
    assert set(logged) == {"test/loss", "test/accuracy"}


def test_training_can_be_resumed_but_not_beyond_its_schedule(tmp_path: Path):
    path = fit_by_command_line(tmp_path, "--trainer.limit_train_batches=3")
    assert torch.load(path, weights_only=True)["lr_schedulers"][0]["total_steps"] == 6
    with pytest.raises(SettingError, match=r"has 6 steps and the run 12: resume with .*max_epochs") as caught:
        fit_by_command_line(
            tmp_path / "more", "--trainer.limit_train_batches=3", "--trainer.max_epochs=4", f"--ckpt_path={path}"
        )
    assert "\n" not in str(caught.value)


def test_built_in_python_it_stores_plain_arguments_only(tmp_path: Path):
    module = ClassifierModule(small_net(), optimizer=functools.partial(torch.optim.SGD, lr=0.1), shift=1)
    run_once = trainer(tmp_path, max_steps=2)
    run_once.fit(module, Digits())
    run_once.save_checkpoint(tmp_path / "direct.ckpt")
    stored = torch.load(tmp_path / "direct.ckpt", weights_only=True)["hyper_parameters"]
    assert stored["shift"] == 1
    assert not {"net", "optimizer"} & set(stored)
    loaded = ClassifierModule.load_from_checkpoint(tmp_path / "direct.ckpt", net=small_net(), weights_only=True)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.classify(x)[1], module.classify(x)[1])


def test_data_of_another_number_of_classes_are_refused(tmp_path: Path):
    module = ClassifierModule(ImageClassifier(1, 9))
    with pytest.raises(SettingError, match=r"the network has 9 classes, the data have 10"):
        trainer(tmp_path, max_steps=1).fit(module, Digits())


# --- schedules ---


@pytest.mark.parametrize(
    ("scheduler", "total"),
    [
        (functools.partial(OneCycleLR, max_lr=0.1), 4),  # open: the run's own length
        (functools.partial(OneCycleLR, max_lr=0.1, total_steps=None), 4),
        (functools.partial(OneCycleLR, max_lr=0.1, total_steps=9), 9),
        (functools.partial(OneCycleLR, max_lr=0.1, epochs=3, steps_per_epoch=2), 6),
    ],
)
def test_an_open_total_steps_is_filled_in(scheduler: functools.partial[OneCycleLR], total: int, tmp_path: Path):
    run_once = trainer(tmp_path, max_epochs=2, limit_train_batches=2, limit_val_batches=0)
    run_once.fit(ClassifierModule(small_net(), scheduler=scheduler), Digits())
    (config,) = run_once.lr_scheduler_configs
    assert config.scheduler.total_steps == total
    assert config.scheduler.last_epoch == 4  # once per step


def test_other_schedules_are_stepped_once_per_step(tmp_path: Path):
    run_once = trainer(tmp_path, max_steps=3)
    schedule = functools.partial(CosineAnnealingLR, T_max=3)
    run_once.fit(ClassifierModule(small_net(), scheduler=schedule), Digits())
    assert run_once.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_an_endless_run_has_no_length_to_fill_in(tmp_path: Path):
    module = ClassifierModule(small_net(), scheduler=functools.partial(OneCycleLR, max_lr=0.1))
    with pytest.raises(SettingError, match=r"set trainer\.max_epochs"):
        trainer(tmp_path, max_epochs=-1).fit(module, Digits())


# --- real data ---


@pytest.mark.slow
def test_a_hundred_steps_on_real_mnist(real_data: Path, tmp_path: Path):
    module = ClassifierModule(ImageClassifier(1, 10), scheduler=functools.partial(OneCycleLR, max_lr=0.005))
    data = MNIST(str(real_data))
    run_once = trainer(tmp_path, max_steps=100, limit_val_batches=0)
    run_once.fit(module, data)
    assert run_once.test(module, data, verbose=False)[0]["test/accuracy"] > 0.97


@pytest.mark.slow
def test_real_cifar10_fits_the_network(real_data: Path, tmp_path: Path):
    module = ClassifierModule(ImageClassifier(3, 10))
    run_once = trainer(tmp_path, max_steps=60, limit_val_batches=0, limit_test_batches=8)
    run_once.fit(module, CIFAR10(str(real_data)))
    assert run_once.test(module, CIFAR10(str(real_data)), verbose=False)[0]["test/accuracy"] > 0.25
