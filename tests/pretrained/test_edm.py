"""Networks with EDM's interface."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, Unguided
from dng_lightning.modules import GuidedSampler
from dng_lightning.modules.models import load_model
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.pretrained import EDMModel
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.sampling.predictors import NetworkPairPredictor
from dng_lightning.schedule import KarrasSchedule


class ExactEDM(nn.Module):
    """EDM's interface over the exact denoiser of Gaussians: one for each class, and all classes together."""

    img_resolution, img_channels, label_dim = 2, 1, 2

    def __init__(self, spread: float = 0.1) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-1.0, 1.0]))
        self.spread = spread

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        assert class_labels.shape == (len(x), 2)
        noise, variance = sigma.reshape(-1, 1, 1, 1) ** 2, self.spread**2
        each = torch.stack([(variance * x + noise * mean) / (variance + noise) for mean in self.means])
        distance = torch.stack([(x - mean).square().flatten(1).sum(1) for mean in self.means])
        share = torch.where(
            class_labels.T.sum(0) > 0, class_labels.T, torch.softmax(-distance / (2 * (variance + noise.flatten())), 0)
        )
        return (share[..., None, None, None] * each).sum(0)


def test_edm_from_a_state_dict(tmp_path: Path):
    save_file(ExactEDM().state_dict(), tmp_path / "edm.safetensors")
    net = ExactEDM()
    with torch.no_grad():
        net.means.zero_()
    model = EDMModel(str(tmp_path / "edm.safetensors"), net, KarrasSchedule(100), ["dark", "light"])
    module = load_model(model)
    assert (module.image_shape, module.class_names, module.null_class) == ((1, 2, 2), ("dark", "light"), 2)
    x_t, level = torch.randn(3, 1, 2, 2), module.schedule.level(40)
    sigma, one_hot = torch.full((3,), level.sigma), torch.eye(2)[[0, 1, 1]]
    with torch.no_grad():
        assert torch.allclose(module(x_t, level, torch.tensor([0, 1, 1])), net(x_t, sigma, one_hot))
        assert torch.allclose(module(x_t, level), net(x_t, sigma, torch.zeros(3, 2)))
    noise = ImageNoise(range(60), module.image_shape)
    images = sample(NetworkPairPredictor(module, [], 2), Unguided(), module.schedule, noise, Sampler(100))
    assert images.abs().mean() == pytest.approx(1, abs=0.02)
    guidance = DynamicNegativeGuidance(1.0, TrackedPosterior(prior=0.5))
    sampler = GuidedSampler(model, "dark", guidance, steps=100, classifier=None)
    assert (sampler.draw(range(60)).images.mean((1, 2, 3)) > 0).float().mean() > 0.9
    assert 0.3 < (images.mean((1, 2, 3)) > 0).float().mean() < 0.7


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this code ran",)


def test_a_pickle_that_carries_code_says_how_to_convert_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": Code()}))
    torch.save(Code(), tmp_path / "net.pt")
    with pytest.raises(
        SettingError, match=r"net.pt is refused, .* file = torch.load\('.*net.pt', weights_only=False\)"
    ):
        load_model(str(tmp_path / "net.pt"))
    for load in (
        lambda: load_model(EDMModel(str(tmp_path / "edm.pkl"), ExactEDM())),
        lambda: load_model(str(tmp_path / "edm.pkl")),
    ):
        with pytest.raises(
            SettingError, match=r"edm.pkl is refused, .* contains code; if you trust it, convert it once"
        ):
            load()
    assert "this code ran" not in capsys.readouterr().out
