"""The autoencoder of a small text-to-image model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from running import TINY

from dng_lightning.data import Digits
from dng_lightning.errors import SettingError
from dng_lightning.storage import resources
from scripts.captioned_digits import AutoencoderModule, CaptionedDigits
from scripts.captioned_images import networks

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

NET: dict[str, Any] = TINY["captioned_digits_autoencoder"]["net"]


@pytest.fixture
def images(fake_mnist: Path) -> torch.Tensor:
    data = CaptionedDigits(str(fake_mnist), val_size=20)
    data.setup()
    return data.part("train").images[:8] / 127.5 - 1


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, enable_checkpointing=False, **quiet, **settings)  # type: ignore[arg-type]


def test_it_learns():
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4), 32, mode="bilinear") * 2 - 1
    module, errors = AutoencoderModule(NET), []
    adam = torch.optim.AdamW(module.parameters(), lr=0.005)
    for _ in range(40):
        again, _, divergence = module(images)
        error = (again - images).abs().mean()
        adam.zero_grad()
        (error + 0.001 * divergence.mean()).backward()
        adam.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.75 * errors[0]


def test_latents_are_diffusers_own_and_their_divergence_is_that_of_gaussians(images: torch.Tensor):
    module = AutoencoderModule(NET)
    with torch.no_grad():
        mean, deviation = networks.moments(module.net, images)
        theirs = module.net.encode(images).latent_dist
        again, latents, divergence = module(images, torch.Generator().manual_seed(0))
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(again, module.net.decode(latents).sample)
    assert latents.shape == (8, 4, 8, 8)
    torch.testing.assert_close((mean, deviation), (theirs.mean, theirs.std))
    torch.testing.assert_close(latents, mean + deviation * noise)
    torch.testing.assert_close(divergence.flatten(1).sum(1), theirs.kl(), rtol=1e-4, atol=1e-4)


def test_validation_says_what_is_lost(images: torch.Tensor, place: Path, in_place: Path, fitted, tmp_path: Path):
    fitted("captioned_digits_autoencoder")  # and the classifiers, which it asks
    module, data = AutoencoderModule(NET, reader="captioned-digits"), CaptionedDigits(val_size=20)
    (logged,) = trainer(tmp_path).validate(module, data, verbose=False)
    part = data.part("val")
    pixels = part.images / 127.5 - 1
    with torch.no_grad():
        again, _, divergence = module(pixels, torch.Generator().manual_seed(0))
        read = module.readers[0].read(again.clamp(-1, 1))
    assert logged["val/absolute_error"] == pytest.approx(float((again - pixels).abs().mean()), rel=1e-4)
    assert logged["val/squared_error"] == pytest.approx(float((again - pixels).square().mean()), rel=1e-4)
    loss = logged["val/absolute_error"] + logged["val/squared_error"] + 0.001 * float(divergence.mean())
    assert logged["val/loss"] == pytest.approx(loss, rel=1e-4)
    for name, seen, true in zip(module.readers[0].names, read.T, part.labels.T, strict=True):
        assert logged[f"val/read_{name}"] == pytest.approx(float((seen == true).float().mean()))
    assert not [name for name in module.state_dict() if "reader" in name]


def test_a_checkpoint_is_the_model(autoencoder: Path, images: torch.Tensor):
    one, other = (AutoencoderModule.load(str(autoencoder)) for _ in range(2))
    assert one.net.config.block_out_channels == (8, 8, 8)
    assert torch.equal(networks.moments(one.net, images)[0], networks.moments(other.net, images)[0])
    assert not any(weight.requires_grad for weight in one.parameters())


def test_the_committed_configuration_is_small():
    settings = yaml.safe_load(resources.config("captioned_digits_autoencoder").read_text())["model"]["init_args"]["net"]
    net = networks.autoencoder(settings)
    assert 300_000 < sum(weight.numel() for weight in net.parameters()) < 1_000_000
    with torch.no_grad():
        mean, _ = networks.moments(net, torch.zeros(1, 3, 32, 32))
        assert mean.shape == (1, 4, 8, 8)
        assert net.decode(mean).sample.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"net": {"channels": 3}}, "these settings do not make an AutoencoderKL: .*channels"),
        ({"net": NET | {"norm_num_groups": 3}}, "these settings do not make an AutoencoderKL: "),
        ({"net": NET, "kl_weight": -1.0}, "kl_weight must be at least 0 and finite; got -1.0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str):
    with pytest.raises(SettingError, match=message) as caught:
        AutoencoderModule(**settings)
    assert "\n" not in str(caught.value)


def test_the_classifiers_are_looked_for_at_once_but_not_for_use(autoencoder: Path, tmp_path: Path):
    with pytest.raises(SettingError, match="No checkpoint 'nobody-digit'"):
        AutoencoderModule(NET, reader="nobody")
    checkpoint = torch.load(autoencoder / "model.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["reader"] = "nobody"
    torch.save(checkpoint, tmp_path / "model.ckpt")
    assert AutoencoderModule.load(str(tmp_path)).readers == []


def test_images_of_another_size_are_refused(tmp_path: Path):
    message = "the network is for 3 channels of 32x32, the images have 1 of 8x8: set net.in_channels"
    with pytest.raises(SettingError, match=message):
        trainer(tmp_path, max_steps=1).fit(AutoencoderModule(NET), Digits())
