"""Training a diffusion model: losses, kinds of prediction, checkpoints."""

import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from running import QUIET
from torch import Generator, Tensor, nn
from training import images, trainer

from dng_lightning.__main__ import run
from dng_lightning.callbacks import EMA
from dng_lightning.data import Digits
from dng_lightning.errors import SettingError
from dng_lightning.modules import DiffusionModule, GuidedSampler
from dng_lightning.networks import UNet
from dng_lightning.parametrization import Prediction
from dng_lightning.schedule import CosineSchedule, KarrasSchedule, LinearSchedule, NoiseSchedule, RectifiedFlowSchedule
from dng_lightning.storage import resources

LEVEL = LinearSchedule().level(500)
PREDICTIONS: list[Prediction] = ["eps", "x0", "v", "flow", "edm"]


class Recorder(nn.Module):
    """Notes what it is told; predicts 0."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.told: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.told.append((x, t, class_labels))
        return 0 * x * self.weight


class Knowing(nn.Module):
    """Gives the answer."""

    num_classes = 0

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self.answer


# --- losses ---


def test_the_loss_is_the_mean_squared_error_of_the_noise():
    """A network that says 0 is wrong by the noise itself, whatever the level."""
    module = DiffusionModule(Recorder())
    losses, t = module.losses(*images(4000), generator=Generator().manual_seed(0))
    losses = losses.detach()
    assert losses.shape == t.shape == (4000,)
    assert losses.mean() == pytest.approx(1, abs=0.01)
    assert losses.std() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert (int(t.min()), int(t.max())) == (1, 1000)
    assert t.float().mean() == pytest.approx(500.5, rel=0.03)
    ((_, told, _),) = module.net.told  # type: ignore[union-attr]
    assert torch.equal(told, t - 1)  # networks count from 0


def test_what_the_network_is_shown():
    module = DiffusionModule(Recorder(), CosineSchedule(100))
    x_0 = torch.zeros(500, 1, 8, 8)
    _, t = module.losses(x_0, torch.zeros(500, dtype=torch.long), generator=Generator().manual_seed(0))
    ((x_t, _, _),) = module.net.told  # type: ignore[union-attr]
    spread = x_t.flatten(1).square().mean(1).sqrt() / module.schedule.sigma[t]
    assert spread.mean() == pytest.approx(1, abs=0.02)
    assert x_t.dtype == torch.float32


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_condition_dropout_tells_the_null_class(dropout: float):
    module = DiffusionModule(Recorder(), condition_dropout=dropout)
    x_0, labels = images(4000)
    module.losses(x_0, labels, generator=Generator().manual_seed(0))
    ((_, _, told),) = module.net.told  # type: ignore[union-attr]
    assert told is not None
    dropped = told == module.null_class
    assert module.null_class == 10
    assert dropped.float().mean() == pytest.approx(dropout, abs=0.03)
    assert torch.equal(told[~dropped], labels[~dropped])


@pytest.mark.parametrize("dropout", [-0.1, 1.1, float("nan")])
def test_a_dropout_that_cannot_be(dropout: float):
    with pytest.raises(SettingError, match=r"condition_dropout must be in .0, 1."):
        DiffusionModule(Recorder(), condition_dropout=dropout)


def test_an_unconditional_network_is_told_nothing():
    net = Recorder()
    net.num_classes = 0
    module = DiffusionModule(net)
    module.losses(*images(4))
    module(torch.zeros(2, 1, 8, 8), LEVEL, torch.zeros(2, dtype=torch.long))
    assert [labels for _, _, labels in net.told] == [None, None]


def test_validation_logs_the_loss_whole_and_by_quarter(tmp_path: Path):
    module, data = DiffusionModule(UNet(1, 10, [8], 1, [], 1)), Digits(val_size=150, batch_size=100)
    run = trainer(tmp_path)
    (logged,) = run.validate(module, data, verbose=False)
    (again,) = run.validate(module, data, verbose=False)
    assert logged == again  # the same levels and noise each time
    module.eval()
    errors, levels = [], []
    for number, (pixels, labels) in enumerate(data.val_dataloader()):
        with torch.no_grad():
            loss, t = module.losses(pixels / 127.5 - 1, labels, Generator().manual_seed(number))
        errors.append(loss)
        levels.append(t)
    assert logged["val/loss"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)
    quarters = [(t - 1) // 250 for t in levels]
    for quarter in range(4):
        inside = torch.cat([loss[q == quarter] for loss, q in zip(errors, quarters, strict=True)])
        assert 15 < len(inside) < 60
        assert logged[f"val/loss_t/q{quarter + 1}"] == pytest.approx(float(inside.mean()), rel=1e-4)
    (tested,) = run.test(module, data, verbose=False)
    assert {name.replace("test/", "val/") for name in tested} == set(logged)


def test_it_learns(tmp_path: Path):
    seed_everything(0, verbose=False)
    adam = functools.partial(torch.optim.AdamW, lr=0.003)
    module, data = DiffusionModule(UNet(1, 10, [16], 1, [], 1), optimizer=adam), Digits(batch_size=64)
    (before,) = trainer(tmp_path).validate(module, data, verbose=False)
    trainer(tmp_path, max_steps=60, limit_val_batches=0).fit(module, data)
    (after,) = trainer(tmp_path).validate(module, data, verbose=False)
    assert before["val/loss"] == pytest.approx(1, abs=0.05)
    assert after["val/loss"] < 0.6
    assert after["val/loss_t/q4"] < after["val/loss_t/q1"]  # little noise is the hardest to tell from an image


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0_whatever_is_predicted(prediction: Prediction):
    """Two denoised images that differ by 0.1 cost min(SNR, 5) times 0.01."""
    schedule = LinearSchedule()
    x_0, noise, t = torch.rand(9, 1, 4, 4), torch.randn(9, 1, 4, 4), torch.arange(100, 1000, 100)
    x_t, (alpha, sigma) = schedule.add_noise(x_0, t, noise), schedule.coefficients(t, x_0)
    wrong = x_0 + 0.1
    target, said = (schedule.target(x, t, (x_t - alpha * x) / sigma, prediction) for x in (x_0, wrong))
    squared = (said - target).square().flatten(1).mean(1)
    snr = (alpha / sigma).flatten() ** 2
    assert snr.max() > 5 > snr.min()
    weighed = schedule.min_snr_weight(t, 5.0, prediction) * squared
    torch.testing.assert_close(weighed, snr.clamp(max=5) * 0.01, rtol=1e-3, atol=0)
    if prediction == "v":
        torch.testing.assert_close(schedule.min_snr_weight(t, 5.0, "v"), snr.clamp(max=5) / (snr + 1))  # as published


def test_only_training_weighs_the_levels():
    batch, told = images(200), []
    for gamma in (None, 5.0):
        module = DiffusionModule(Recorder(), snr_gamma=gamma, condition_dropout=0)
        module.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        losses, t = module.losses(*batch, generator=Generator().manual_seed(0))
        module.losses = lambda *_, pair=(losses, t): pair  # type: ignore[method-assign,misc]
        told.append(module.training_step(batch, 0))
        expected = losses * (module.schedule.min_snr_weight(t, gamma, "eps") if gamma else 1)
        assert torch.equal(told[-1], expected.mean())
    assert told[1] < 0.95 * told[0]  # the least noisy sixth counts less


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_a_bound_that_cannot_be(gamma: float):
    with pytest.raises(SettingError, match=r"snr_gamma must be in \(0, inf\)"):
        DiffusionModule(Recorder(), snr_gamma=gamma)


# --- what a network predicts ---


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(), CosineSchedule(), KarrasSchedule(), RectifiedFlowSchedule(u_max=0.99)]
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_of_any_kind_gives_the_image(schedule: NoiseSchedule, prediction: Prediction):
    x_0, noise = torch.rand(2, 1, 8, 8) * 2 - 1, torch.randn(2, 1, 8, 8)
    for t in (20, 500, schedule.T):
        level, ts = schedule.level(t), torch.full((2,), t)
        x_t = schedule.add_noise(x_0, ts, noise)
        module = DiffusionModule(Knowing(schedule.target(x_0, ts, noise, prediction)), schedule, prediction)
        denoised = module(x_t, level)
        assert denoised.dtype == torch.float32
        assert torch.allclose(denoised, x_0, atol=1e-5 * max(1, level.sigma / level.alpha))


def test_the_kinds_share_one_optimum():
    """Each network's error, as an error of the denoised image, is its own error by a factor that the schedule gives."""
    schedule = LinearSchedule()
    x_0, noise, wrong = torch.rand(1, 1, 4, 4), torch.randn(1, 1, 4, 4), 0.1 * torch.randn(1, 1, 4, 4)
    for t in range(100, 1000, 100):
        level, ts = schedule.level(t), torch.tensor([t])
        alpha, sigma, x_t = level.alpha, level.sigma, schedule.add_noise(x_0, ts, noise)
        for prediction, factor in (
            ("eps", -sigma / alpha),
            ("x0", 1),
            ("v", -sigma),
            ("flow", -sigma / (alpha + sigma)),
        ):
            answer = schedule.target(x_0, ts, noise, prediction) + wrong  # type: ignore[arg-type]
            module = DiffusionModule(Knowing(answer), schedule, prediction)  # type: ignore[arg-type]
            assert torch.allclose(module(x_t, level) - x_0, factor * wrong, atol=1e-4 / alpha)


def test_a_network_of_edm_is_shown_unit_variance_at_every_level():
    """Unscaled, a network of the exploding schedule would be shown noise of a standard deviation up to 80."""
    net = Recorder()
    module = DiffusionModule(net, KarrasSchedule(), "edm").requires_grad_(False)
    losses, _ = module.losses(0.5 * torch.randn(500, 1, 8, 8), torch.zeros(500, dtype=torch.long))
    ((shown, _, _),) = net.told
    assert (shown.flatten(1).std(1) - 1).abs().max() < 0.5
    assert shown.std() == pytest.approx(1, abs=0.02)
    assert losses.mean() == pytest.approx(1, abs=0.05)  # so is what it learns, EDM's F
    level = module.schedule.level(1000)
    module(level.sigma * torch.randn(500, 1, 8, 8), level)
    assert net.told[-1][0].std() == pytest.approx(1, abs=0.02)


def test_edm_learns_and_is_sampled_from_its_checkpoint(tmp_path: Path):
    """`KarrasSchedule` on the command line, with its preconditioning."""
    edm = ["--model.schedule=KarrasSchedule", "--model.prediction=edm", "--model.net.channels=[16]"]
    length = ["--model.net.attention=[]", "--trainer.max_steps=60", "--trainer.limit_val_batches=1"]
    callbacks = "--trainer.callbacks=[{class_path: EMA}, {class_path: Export}]"
    folder = f"--trainer.default_root_dir={tmp_path}"
    run(["fit", f"--config={resources.config('digits')}", *QUIET, *edm, *length, callbacks, folder])
    loaded = DiffusionModule.load(str(tmp_path))
    assert (type(loaded.schedule), loaded.prediction) == (KarrasSchedule, "edm")
    images = GuidedSampler(str(tmp_path), classifier=None, steps=10).draw(range(16)).images
    data = Digits()
    data.setup()
    real = data.part("test").images / 127.5 - 1
    assert images.std() == pytest.approx(float(real.std()), rel=0.4)
    assert images.mean() == pytest.approx(float(real.mean()), abs=0.4)


def test_bfloat16_networks_give_float32():
    module = DiffusionModule(UNet(1, 10, [8], 1, [], 1)).to(torch.bfloat16)
    assert module(torch.randn(2, 1, 8, 8), LEVEL).dtype == torch.float32


# --- checkpoints ---


def test_built_in_python_it_stores_plain_arguments_only(tmp_path: Path):
    module = DiffusionModule(UNet(1, 10, [8], 1, [], 1), condition_dropout=0.25)
    run_once = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run_once.fit(module, Digits())
    run_once.save_checkpoint(tmp_path / "direct.ckpt")
    stored = torch.load(tmp_path / "direct.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["condition_dropout"] == 0.25
    assert not {"net", "schedule", "optimizer"} & set(stored["hyper_parameters"])
    with pytest.raises(SettingError, match=r"direct\.ckpt is no checkpoint of a DiffusionModule"):
        DiffusionModule.load(str(tmp_path / "direct.ckpt"))  # the network has to be given
    net = UNet(1, 10, [8], 1, [], 1)
    loaded = DiffusionModule.load_from_checkpoint(tmp_path / "direct.ckpt", net=net, weights_only=True)
    assert loaded.net.stem.weight.equal(module.net.stem.weight)
    assert loaded.seen_classes == tuple(range(10))


def test_the_average_does_not_copy_the_trainer_and_the_data(tmp_path: Path, monkeypatch):
    """What the command line makes optimisers with holds all of it, and several processes cannot even copy that."""

    def refuse(self: object, _: object) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(Trainer, "__deepcopy__", refuse, raising=False)
    monkeypatch.setattr(Digits, "__deepcopy__", refuse, raising=False)
    net = ["--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.max_steps=1"]
    rest = ["--trainer.callbacks=[{class_path: EMA}]", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
    folder = f"--trainer.default_root_dir={tmp_path}"
    cli = run(["fit", f"--config={resources.config('digits')}", *QUIET, *net, *rest, folder])
    assert isinstance(cli.trainer.callbacks[0], EMA)
