"""The averaged weights are what is validated, sampled from, saved and kept; resuming changes nothing."""

import functools
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from dng_lightning.callbacks import EMA, GuidedSampling
from dng_lightning.data import Digits
from dng_lightning.errors import SettingError
from dng_lightning.modules import DiffusionModule
from dng_lightning.networks import UNet
from dng_lightning.sampling import sample

DECAY = 0.3  # soon reached by the warm-up


class Counter(LightningModule):
    """One weight, which is n after the n-th step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(float(self.weight))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Losses(Callback):
    """The training losses: what was seen, in which order, with which noise."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def averages(steps: int, decay: float) -> list[float]:
    """The average of the weights 1, 2, ... after each step, by the formula."""
    found = [1.0]
    for n in range(1, steps):
        kept = min(decay, (1 + n) / (10 + n))
        found.append(kept * found[-1] + (1 - kept) * (n + 1))
    return found


def trainer(folder: Path, *callbacks: Callback, **settings: object) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings = {"default_root_dir": folder, "enable_checkpointing": saving, **quiet, **settings}
    return Trainer(callbacks=list(callbacks), **settings)  # type: ignore[arg-type]


def diffusion(**settings: object) -> DiffusionModule:
    net = UNet(1, 10, channels=[8], blocks=1, attention=[], patch=1, dropout=0.1)
    schedule = functools.partial(OneCycleLR, max_lr=0.01)
    return DiffusionModule(net, optimizer=functools.partial(torch.optim.AdamW, lr=0.01), scheduler=schedule, **settings)


def weights(module: LightningModule) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


# --- the average ---


@pytest.mark.parametrize("decay", [DECAY, 0.999, 0.0])
def test_the_decay_warms_up_as_the_formula_says(decay: float, tmp_path: Path):
    module = Counter()
    run = trainer(tmp_path, EMA(decay), max_epochs=6)
    run.fit(module, DataLoader([0.0, 0.0]), DataLoader([0.0]))  # two steps an epoch, then a validation
    expected = averages(12, decay)
    assert module.seen == pytest.approx([0, *expected[1::2]])  # the first is the sanity check, before any average
    assert float(module.weight) == pytest.approx(expected[-1])


def test_the_start_is_soon_forgotten():
    """A fixed decay of 0.999 would keep 90 % of the random start after 100 steps."""
    assert averages(100, 0.999)[-1] > 85


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_the_average_is_taken_in_any_precision(precision: str, tmp_path: Path):
    module, ema = Counter(), EMA(0.999)
    run = trainer(tmp_path, ema, max_epochs=3, precision=precision)
    run.fit(module, DataLoader([0.0, 0.0]), DataLoader([0.0]))
    assert float(module.weight) == pytest.approx(averages(6, 0.999)[-1], rel=2**-8)


def test_weights_that_cannot_be_averaged_are_refused(tmp_path: Path):
    with pytest.raises(SettingError, match=r"trainer\.precision 16-true: take 16-mixed or bf16-true"):
        trainer(tmp_path, EMA(), precision="16-true").fit(Counter(), DataLoader([0.0]))


def test_it_can_be_sent_to_other_processes():
    """As `ddp_spawn` does."""
    assert pickle.loads(pickle.dumps(EMA(0.5)))._kwargs["multi_avg_fn"].args == (0.5,)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 3.0])
def test_a_decay_that_cannot_be(decay: float):
    with pytest.raises(SettingError, match=r"decay must be in \[0, 1\)"):
        EMA(decay)


def test_training_goes_on_with_the_current_weights(tmp_path: Path):
    module, current = Counter(), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
            current.append(float(module.weight))

    trainer(tmp_path, EMA(DECAY), Watch(), max_epochs=3).fit(module, DataLoader([0.0] * 2), DataLoader([0.0]))
    assert current == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"max_epochs": 0}, {"max_epochs": 1, "limit_train_batches": 0}])
def test_a_fit_of_no_step_leaves_the_weights(settings: dict[str, int], tmp_path: Path):
    module = Counter()
    nn.init.constant_(module.weight, 7)
    trainer(tmp_path, EMA(DECAY), **settings).fit(module, DataLoader([0.0]), DataLoader([0.0]))
    assert float(module.weight) == 7


# --- what is sampled from ---


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_guided_sampling_sees_the_average_in_any_order(order: tuple[int, int], tmp_path: Path, monkeypatch):
    seed_everything(0, verbose=False)
    used: list[Tensor] = []

    def watched(predictor, *args: object, **settings: object):
        used.append(weights(predictor.denoiser))
        return sample(predictor, *args, **settings)

    monkeypatch.setattr("dng_lightning.modules.image_sampler.sample", watched)
    ema, sampling = EMA(0.9), GuidedSampling("0", num_samples=2, steps=2)
    callbacks = [(ema, sampling)[i] for i in order]
    module = diffusion()
    trainer(tmp_path, *callbacks, max_epochs=1, limit_train_batches=8, limit_val_batches=1).fit(module, Digits())
    assert len(used) == 2  # unguided and guided
    final = weights(module)  # nothing was trained after the validation
    assert torch.equal(used[0], final)
    assert torch.equal(used[1], final)
    state = ema._average_model
    assert state is not None
    assert torch.equal(final, weights(state.module))


# --- checkpoints and resuming ---

STEPS, STEPS_AN_EPOCH = 15, 5
DEFAULT = {"max_epochs": 3, "limit_val_batches": 1}


def fit(folder: Path, *callbacks: Callback, resume: Path | None = None, **settings: object) -> DiffusionModule:
    """Three epochs of five steps on the real digits, as `dng fit` would start it."""
    seed_everything(0, verbose=False)
    module, data = diffusion(), Digits(batch_size=250, flip=True)
    run = trainer(folder, EMA(0.9), *callbacks, **DEFAULT | settings)
    run.fit(module, data, ckpt_path=resume, weights_only=True)
    return module


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def assert_same_weights(one: Path, other: Path) -> None:
    """Of two checkpoints, the averaged and the raw ones, bit for bit."""
    stored = [torch.load(path, weights_only=True) for path in (one, other)]
    for kind in ("state_dict", "current_model_state"):
        assert all(torch.equal(stored[0][kind][name], stored[1][kind][name]) for name in stored[0][kind])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, list[float]]:
    """An uninterrupted run: its checkpoints of every step, its last weights, its losses."""
    folder, losses = tmp_path_factory.mktemp("whole"), Losses()
    at_epoch_end = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    module = fit(folder, every_step(folder), at_epoch_end, losses)
    assert len(set(losses.losses)) == STEPS
    return folder, weights(module), losses.losses


@pytest.mark.parametrize("after", [5, 7, 13])  # between two epochs and within one
def test_resuming_gives_the_weights_of_an_uninterrupted_run(after: int, whole, tmp_path: Path):
    folder, last, losses = whole
    resumed_losses = Losses()
    resumed = fit(tmp_path, every_step(tmp_path), resumed_losses, resume=folder / f"step={after}.ckpt")
    assert resumed_losses.losses == losses[after:]
    assert torch.equal(weights(resumed), last)
    for step in range(after + 1, STEPS + 1):
        assert_same_weights(folder / f"step={step}.ckpt", tmp_path / f"step={step}.ckpt")


def test_resuming_from_the_end_of_an_epoch(whole, tmp_path: Path):
    folder, last, _ = whole
    assert torch.equal(weights(fit(tmp_path, resume=folder / "epoch=1.ckpt")), last)


def test_a_checkpoint_holds_the_average(whole):
    folder, last, _ = whole
    stored = torch.load(folder / f"step={STEPS}.ckpt", weights_only=True)
    names = [name for name, _ in diffusion().named_parameters()]
    assert torch.equal(torch.cat([stored["state_dict"][name].flatten() for name in names]), last)
    assert not torch.equal(torch.cat([stored["current_model_state"][name].flatten() for name in names]), last)


def test_an_interrupted_validation_saves_the_right_weights(whole, tmp_path: Path, monkeypatch):
    """Sampling takes a while, so that it is then that one interrupts."""
    folder, last, _ = whole

    def interrupted(*_: object) -> None:
        raise RuntimeError("interrupted")

    on_exception = ModelCheckpoint(tmp_path, filename="{step}", save_on_exception=True, every_n_epochs=9)
    monkeypatch.setattr(DiffusionModule, "validation_step", interrupted)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(tmp_path, on_exception, num_sanity_val_steps=0)
    monkeypatch.undo()
    path = tmp_path / f"step={STEPS_AN_EPOCH}.ckpt"
    assert_same_weights(folder / path.name, path)
    assert torch.equal(weights(fit(tmp_path, resume=path)), last)
