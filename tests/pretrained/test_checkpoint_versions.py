"""Checkpoints of other versions, of safetensors and of several devices."""

from pathlib import Path

import pytest
import torch

from dng_lightning.errors import SettingError
from dng_lightning.modules import DiffusionModule
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.modules.judges import load_classifier
from dng_lightning.modules.models import load_model
from dng_lightning.storage import safe_checkpoint

# --- another version of this package ---


def test_a_checkpoint_of_another_version(digits: Path, tmp_path: Path):
    stored = torch.load(digits / "model.ckpt", weights_only=True)
    stored["pytorch-lightning_version"] = "2.1.0"
    stored["hyper_parameters"]["a_setting_of_old"] = 3
    assert stored["hyper_parameters"].pop("condition_dropout") is not None  # a setting that is new
    torch.save(stored, tmp_path / "old.ckpt")
    x_t, now = torch.randn(1, 1, 8, 8), DiffusionModule.load(str(digits))
    level = now.schedule.level(300)
    assert torch.equal(DiffusionModule.load(str(tmp_path / "old.ckpt"))(x_t, level), now(x_t, level))


def test_a_file_of_safetensors_by_name(digits: Path, tmp_path: Path):
    """Like the folder that it is in."""
    for name, load in (("digits", load_model), ("digits-classifier", load_classifier)):
        stored = torch.load(digits.parent / name / "model.ckpt", weights_only=True)
        safe_checkpoint.write(stored, tmp_path / "model.safetensors")
        found = load(str(tmp_path / "model.safetensors"))
        assert isinstance(found, TrainedModule)
        assert all(torch.equal(found.state_dict()[key], value) for key, value in stored["state_dict"].items())


def test_weights_alone_are_no_model(digits: Path, tmp_path: Path):
    stored = torch.load(digits / "model.ckpt", weights_only=True)
    torch.save({"state_dict": stored["state_dict"]}, tmp_path / "alone.ckpt")
    with pytest.raises(SettingError, match=r"alone\.ckpt is no .*: it holds weights without the settings of their net"):
        load_model(str(tmp_path / "alone.ckpt"))


@pytest.mark.parametrize("version", ["1.5.10", "3.0.0", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net._orig_mod."])
def test_a_checkpoint_of_any_lightning_compiled_or_of_several_devices(
    version: str | None, prefix: str, digits: Path, tmp_path: Path
):
    stored = torch.load(digits / "model.ckpt", weights_only=True)
    stored["pytorch-lightning_version"] = version
    stored = {name: value for name, value in stored.items() if value is not None}
    inner = "net." if prefix.startswith("net.") else ""
    stored["state_dict"] = {prefix + name.removeprefix(inner): value for name, value in stored["state_dict"].items()}
    torch.save(stored, tmp_path / "other.ckpt")
    now, other = DiffusionModule.load(str(digits)), DiffusionModule.load(str(tmp_path / "other.ckpt"))
    for name, value in now.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    now.start_from(str(tmp_path / "other.ckpt"))


def test_a_checkpoint_whose_classes_were_renamed_since(digits: Path, tmp_path: Path):
    stored = torch.load(digits / "model.ckpt", weights_only=True)
    stored["hyper_parameters"]["net"]["class_path"] = "dng_lightning.networks.old.OldUNet"
    torch.save(stored, tmp_path / "old.ckpt")
    with pytest.raises(SettingError, match=r"old\.ckpt is no checkpoint of a DiffusionModule: .* 'old'$") as caught:
        DiffusionModule.load(str(tmp_path / "old.ckpt"))
    assert "\n" not in str(caught.value)
