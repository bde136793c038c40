"""Training of classifiers: checkpoints, schedules, real data."""

import functools
import math
from pathlib import Path

import pytest
import torch
from classifiers import small_net
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from training import trainer

from dng_lightning.__main__ import run
from dng_lightning.data import CIFAR10, MNIST, Digits
from dng_lightning.errors import SettingError
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.networks.classifier import ImageClassifier
from dng_lightning.schedule import LinearSchedule
from dng_lightning.storage import resources

CONFIG = str(resources.config("digits_classifier"))


def fit_by_command_line(folder: Path, *settings: str) -> Path:
    """Two epochs of the committed config with a smaller network; returns the checkpoint."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    small = ["--model.net.channels=[16,32]", "--trainer.max_epochs=2", f"--trainer.default_root_dir={folder}"]
    run(["fit", f"--config={CONFIG}", *quiet, *small, *settings])
    return folder / "checkpoints" / "last.ckpt"


# --- training, checkpoints ---


def test_it_learns_and_its_checkpoint_rebuilds_it(tmp_path: Path):
    path = fit_by_command_line(tmp_path, "--trainer.max_epochs=10")
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    assert stored["net"]["class_path"].endswith("ImageClassifier")
    assert stored["net"]["init_args"]["channels"] == [16, 32]
    assert stored["scheduler"]["init_args"]["max_lr"] == 0.005

    module = ClassifierModule.load(str(path))
    assert module.class_names == Digits.class_names
    data = Digits()
    data.setup()
    images, truth = data.part("test").images, data.part("test").labels
    labels = module.label(images / 127.5 - 1).labels
    assert (labels == truth).float().mean() > 0.95
    (logged,) = trainer(tmp_path).test(module, data, verbose=False)
    assert logged["test/accuracy"] == pytest.approx((labels == truth).float().mean().item())
    assert set(logged) == {"test/loss", "test/accuracy"}


@pytest.fixture(scope="module")
def noisy_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a noise-conditional classifier of Digits."""
    folder = tmp_path_factory.mktemp("noisy")
    noisy = ["--model.net.embedding=32", "--model.schedule=LinearSchedule", "--model.label_smoothing=0"]
    fit_by_command_line(folder, "--trainer.max_epochs=24", "--model.scheduler.max_lr=0.01", *noisy)
    return folder


def test_a_noise_conditional_one_learns_p_of_c_given_x_t(noisy_digits: Path, tmp_path: Path):
    module = ClassifierModule.load(str(noisy_digits), noisy=True)
    data = Digits()
    data.setup()
    images, truth = data.part("test").images / 127.5 - 1, data.part("test").labels
    generator = torch.Generator().manual_seed(0)
    accuracy, loss = [], []
    for level in (1, 150, 500, 1000):
        t = torch.full((len(images),), level)
        noise = torch.randn(images.shape, generator=generator)
        log_p = module.log_posterior(LinearSchedule().add_noise(images, t, noise), LinearSchedule().level(level))
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(images)))
        accuracy.append(float((log_p.argmax(1) == truth).float().mean()))
        loss.append(float(nn.functional.nll_loss(log_p, truth)))
    assert accuracy[0] > 0.85
    assert accuracy[1] > 0.7
    assert accuracy == sorted(accuracy, reverse=True)
    # where nothing is left of the image it knows that it knows nothing: the prior, log 10 nats
    assert loss[-1] == pytest.approx(math.log(10), abs=0.1)
    assert loss[0] < 0.5

    logged = [trainer(tmp_path).test(module, data, verbose=False)[0] for _ in range(2)]
    assert logged[0] == logged[1]  # the same levels and noise each time
    quarters = {f"test/{kind}_t/q{quarter}" for kind in ("loss", "accuracy") for quarter in (1, 2, 3, 4)}
    assert set(logged[0]) == {"test/loss", "test/accuracy"} | quarters
    assert logged[0]["test/accuracy_t/q1"] > logged[0]["test/accuracy_t/q2"] > logged[0]["test/accuracy_t/q4"]
    assert logged[0]["test/loss_t/q4"] == pytest.approx(math.log(10), abs=0.1)
    with pytest.raises(SettingError, match="classifies noisy images: name a classifier of clean ones"):
        ClassifierModule.load(str(noisy_digits))
    with pytest.raises(SettingError, match="needs the noise level"):
        module.label(images[:1])


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
    assert torch.equal(loaded.label(x).confidence, module.label(x).confidence)


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
    run_once = trainer(tmp_path, max_steps=100, limit_val_batches=0, limit_test_batches=16)
    run_once.fit(module, data)
    assert run_once.test(module, data, verbose=False)[0]["test/accuracy"] > 0.97


@pytest.mark.slow
def test_real_cifar10_fits_the_network(real_data: Path, tmp_path: Path):
    module = ClassifierModule(ImageClassifier(3, 10))
    run_once = trainer(tmp_path, max_steps=60, limit_val_batches=0, limit_test_batches=8)
    run_once.fit(module, CIFAR10(str(real_data)))
    assert run_once.test(module, CIFAR10(str(real_data)), verbose=False)[0]["test/accuracy"] > 0.25
