"""What trained modules share: a resumed run has its own settings, a new one may start from weights."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from dng_lightning.callbacks import Export, GuidedSampling
from dng_lightning.data import Digits
from dng_lightning.errors import SettingError
from dng_lightning.modules import ClassifierModule, DiffusionModule
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.networks import DiffusersNetwork, UNet


class Rates(Callback):
    """The settings of the optimiser at each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        (group,) = trainer.optimizers[0].param_groups
        self.seen.append({name: value for name, value in group.items() if name != "params"})

    def all(self, name: str = "lr") -> list[Any]:
        return [settings[name] for settings in self.seen]


def diffusers_net(**settings: Any) -> nn.Module:
    """A narrow UNet2DModel of grey images."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra diffusers)")
    blocks = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    plain = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    return diffusers.UNet2DModel(**blocks | plain | settings)


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


# --- data of another kind than ours ---

IMAGES = torch.rand(8, 1, 8, 8) * 2 - 1
LABELS = torch.arange(8)


class Theirs(LightningDataModule):
    """A data module that knows nothing of us; it scales its images late, as ours do."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.tensors = tensors or (((IMAGES + 1) * 127.5).round(), LABELS)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.tensors), batch_size=4)

    val_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        return batch if len(self.tensors[0].unique()) < 3 else [batch[0] / 127.5 - 1, *batch[1:]]


def quiet_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"max_epochs": 1, "enable_checkpointing": False}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **quiet | settings)  # type: ignore[arg-type]


def test_a_data_module_of_one_s_own_tells_shape_and_classes_by_its_first_batch(tmp_path: Path):
    model = module()
    trainer = quiet_trainer(tmp_path, GuidedSampling("3", num_samples=2, steps=2))
    trainer.fit(model, Theirs())
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    loaded = DiffusionModule.load_from_checkpoint(tmp_path / "theirs.ckpt", net=UNet(1, 10, (4,), 1, (), 1))
    for it in (model, loaded):
        assert (it.image_shape, it.class_names) == ((1, 8, 8), tuple("0123456789"))
        assert it.seen_classes == tuple(range(10))


def test_so_do_loaders_and_data_modules_that_name_their_classes(tmp_path: Path):
    data = TensorDataset(IMAGES, LABELS)
    data.classes = list("abcdefghij")  # type: ignore[attr-defined]  # as torchvision's have them
    model, other = module(), module()
    quiet_trainer(tmp_path).fit(model, DataLoader(data, batch_size=4))
    assert model.class_names == tuple("abcdefghij")
    theirs = Theirs()
    theirs.class_names = tuple("klmnopqrst")  # type: ignore[attr-defined]
    quiet_trainer(tmp_path).fit(other, theirs)
    assert other.class_names == tuple("klmnopqrst")
    unconditional = DiffusionModule(UNet(1, 0, (4,), 1, (), 1))
    quiet_trainer(tmp_path).fit(unconditional, Theirs())
    assert (unconditional.image_shape, unconditional.class_names) == ((1, 8, 8), ())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([IMAGES], "must be two tensors, images and labels; it is a list"),
        ([(IMAGES + 1) / 2, LABELS], r"must be floats \(B, C, H, W\) in \[-1, 1\]; they are torch.float32 .* in \[0"),
        ([IMAGES * 100, LABELS], r"must be floats .* in \[-9\d"),
        ([IMAGES[:, 0], LABELS], r"must be floats .* they are torch.float32 \(4, 8, 8\)"),
        ([IMAGES, LABELS + 10], "must be from 0 to 9; they are from 10 to 13: set num_classes"),
        ([IMAGES, LABELS.float()], r"must be int64 \(B,\); they are torch.float32"),
        ([IMAGES, LABELS[:, None]], r"must be int64 \(B,\); they are torch.int64 \(4, 1\)"),
    ],
)
def test_other_batches_are_refused_before_the_first_step(tensors: list[Tensor], reason: str, tmp_path: Path):
    loader = DataLoader(TensorDataset(*tensors), batch_size=4)
    with pytest.raises(SettingError, match=reason) as caught:
        quiet_trainer(tmp_path).fit(module(), loader)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# --- a network that does not go with the data ---


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (UNet(3, 10, (4,), 1, (), 1), r"model.net does not take the data's images \(1, 8, 8\): .*channels"),
        (UNet(1, 10, (4, 4), 1, (), 8), r"must be divisible by 16.* 8x8"),
        (DiffusersNetwork(diffusers_net(), 10), r"model.net does not take .*: class_embedding needs to be initialized"),
        (
            DiffusersNetwork(diffusers_net(out_channels=2)),
            r"model.net gives \(1, 2, 8, 8\) for an image .* \(1, 1, 8, 8\)",
        ),
    ],
)
def test_a_network_for_other_images_is_refused_before_the_first_step(net: nn.Module, reason: str, tmp_path: Path):
    with pytest.raises(SettingError, match=reason) as caught:
        quiet_trainer(tmp_path).fit(DiffusionModule(net), Digits())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_diffusers_network_without_a_null_class_is_refused():
    with pytest.raises(SettingError, match=r"num_class_embeds is 10: set it to num_classes \+ 1, 11"):
        DiffusersNetwork(diffusers_net(num_class_embeds=10), 10)


def test_any_classifier_can_be_trained(tmp_path: Path):
    def classifier(classes: int) -> ClassifierModule:
        return ClassifierModule(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)))

    model = classifier(10)
    quiet_trainer(tmp_path).fit(model, Digits())
    assert model.label(IMAGES).labels.shape == (8,)
    with pytest.raises(
        SettingError, match=r"model.net gives \(1, 1000\) for an image of the data; it must give \(1, 10\)"
    ):
        quiet_trainer(tmp_path).fit(classifier(1000), Digits())
    with pytest.raises(SettingError, match=r"model.net does not take the data's images \(1, 8, 8\)"):
        quiet_trainer(tmp_path).fit(ClassifierModule(torchvision.models.resnet18(num_classes=10)), Digits())


def test_an_export_that_nothing_could_load_is_refused_before_training(tmp_path: Path):
    with pytest.raises(SettingError, match=r"Export stores no net that was made in Python: .*load_from_check"):
        quiet_trainer(tmp_path, Export()).fit(module(), Digits())
    assert not list(tmp_path.iterdir())
