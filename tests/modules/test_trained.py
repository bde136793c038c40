"""What trained modules share: a resumed run has its own settings, a new one may start from weights."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from dng_lightning.callbacks import Export
from dng_lightning.data import Digits
from dng_lightning.errors import SettingError
from dng_lightning.modules import DiffusionModule
from dng_lightning.modules.trained import TrainedModule
from dng_lightning.networks import UNet


class Rates(Callback):
    """The settings of the optimiser at each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        (group,) = trainer.optimizers[0].param_groups
        self.seen.append({name: value for name, value in group.items() if name != "params"})

    def all(self, name: str = "lr") -> list[Any]:
        return [settings[name] for settings in self.seen]


ADAM = partial(AdamW, lr=0.1)


def module(optimizer: Any = ADAM, scheduler: Any = None, width: int = 4) -> DiffusionModule:
    return DiffusionModule(UNet(1, 10, (width,), 1, (), 1), optimizer=optimizer, scheduler=scheduler)


def fit(folder: Path, model: TrainedModule, steps: int, ckpt_path: Path | None = None) -> Rates:
    """Train on some images in epochs of 2 steps, and store `last.ckpt` in the folder."""
    rates = Rates()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    short = {"limit_train_batches": 2, "limit_val_batches": 1, "max_steps": steps, "enable_checkpointing": False}
    trainer = Trainer(default_root_dir=folder, callbacks=[rates], **quiet, **short)  # type: ignore[arg-type]
    trainer.fit(model, Digits(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return rates


SCHEDULES = {
    "one cycle": partial(OneCycleLR, max_lr=0.1, pct_start=0.5),
    "cosine": partial(CosineAnnealingLR, T_max=8),
    "warm-up": partial(LambdaLR, lr_lambda=lambda step: min(1.0, step / 6)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_longer_run_goes_on_as_if_it_had_always_been_as_long(name: str, tmp_path: Path):
    whole = fit(tmp_path / "whole", module(scheduler=SCHEDULES[name]), 8)
    fit(tmp_path / "first", module(scheduler=SCHEDULES[name]), 4)
    rest = fit(tmp_path / "rest", module(scheduler=SCHEDULES[name]), 8, tmp_path / "first" / "last.ckpt")
    assert rest.all() == whole.all()[4:]
    assert rest.all("betas") == whole.all("betas")[4:]


def test_a_resumed_run_takes_its_own_rate_and_schedule(tmp_path: Path):
    fit(tmp_path, module(scheduler=SCHEDULES["one cycle"]), 4)
    last = tmp_path / "last.ckpt"
    assert fit(tmp_path / "a", module(partial(AdamW, lr=0.01, weight_decay=0.3)), 6, last).all() == [0.01] * 2
    assert fit(tmp_path / "b", module(partial(AdamW, weight_decay=0.3)), 6, last).all("weight_decay") == [0.3] * 2
    halved = partial(OneCycleLR, max_lr=0.05, pct_start=0.5)
    whole = fit(tmp_path / "c", module(scheduler=halved), 6).all()
    assert fit(tmp_path / "d", module(scheduler=halved), 6, last).all() == whole[4:]


def test_a_plateau_s_rate_is_kept_until_another_one_is_given(tmp_path: Path):
    # nothing counts as an improvement, so that each epoch reduces it
    reduce = partial(ReduceLROnPlateau, monitor="val/loss", patience=0, factor=0.5, threshold=1.0)
    whole = fit(tmp_path / "whole", module(scheduler=reduce), 8).all()
    fit(tmp_path, module(scheduler=reduce), 4)
    assert fit(tmp_path / "a", module(scheduler=reduce), 8, tmp_path / "last.ckpt").all() == whole[4:]
    other = module(partial(AdamW, lr=0.01), reduce)
    assert fit(tmp_path / "b", other, 6, tmp_path / "last.ckpt").all() == [0.01] * 2


def test_another_kind_of_optimiser_is_refused(tmp_path: Path):
    fit(tmp_path, module(partial(SGD, lr=0.1)), 2)
    with pytest.raises(SettingError, match="the checkpoint's optimizer has no betas: go on with the optimizer of its"):
        fit(tmp_path, module(), 4, tmp_path / "last.ckpt")


def test_a_schedule_that_ends_before_the_run_is_refused(tmp_path: Path):
    with pytest.raises(SettingError, match=r"the learning-rate schedule has 3 steps and the run 4: set .*total_steps"):
        fit(tmp_path, module(scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=3)), 4)


def test_a_new_run_starts_from_weights(tmp_path: Path):
    old, new = module(), module()
    fit(tmp_path, old, 2)
    Export(half=True).write(old, tmp_path)
    new.start_from(str(tmp_path / "last.ckpt"))
    assert all(torch.equal(weight, new.state_dict()[name]) for name, weight in old.state_dict().items())
    new.start_from(str(tmp_path))  # the export
    assert new.dtype == torch.float32
    assert fit(tmp_path / "new", new, 2).all() == [0.1] * 2
    with pytest.raises(SettingError, match=r"is no checkpoint of this DiffusionModule: size mismatch for net"):
        module(width=8).start_from(str(tmp_path))


def test_weights_alone_and_other_networks_are_not_resumed(tmp_path: Path):
    model = module()
    fit(tmp_path, model, 2)
    Export().write(model, tmp_path)
    with pytest.raises(SettingError, match="holds weights alone: start a new run from them with --weights"):
        fit(tmp_path, module(), 4, tmp_path / "model.ckpt")
    with pytest.raises(SettingError, match=r"of another network \(net\.\S+ is \(.*\) in it, .* in this one\): go on"):
        fit(tmp_path, module(width=8), 4, tmp_path / "last.ckpt")
