"""Networks with EDM's interface."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dng_lightning.__main__ import complaint
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


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("in_folder")
def test_a_pickle_that_carries_code_says_how_to_convert_it(capsys: pytest.CaptureFixture[str]):
    Path("edm.pkl").write_bytes(pickle.dumps({"ema": Code()}))
    torch.save(Code(), "net.pt")
    for name, given in (("net.pt", "net.pt"), ("edm.pkl", "edm.pkl"), ("edm.pkl", EDMModel("edm.pkl", ExactEDM()))):
        with pytest.raises(SettingError, match=f"{name} is refused, .* contains code; if you trust it") as refused:
            load_model(given)
        assert complaint(refused.value) == str(refused.value), "the command line cuts it"
        assert f"load('{name}'" in str(refused.value) or f"load(open('{name}'" in str(refused.value)
    assert "this code ran" not in capsys.readouterr().out


@pytest.mark.usefixtures("in_folder")
def test_the_conversion_that_is_said_is_one():
    net = nn.Linear(2, 3)
    torch.save(net, "net.pt")
    Path("edm.pkl").write_bytes(pickle.dumps({"ema": net}))
    for name in ("net.pt", "edm.pkl"):
        with pytest.raises(SettingError) as refused:
            load_model(name)
        exec(str(refused.value).partition("code is: ")[2])
        assert torch.equal(load_file("net.safetensors")["weight"], net.weight)
        Path("net.safetensors").unlink()
