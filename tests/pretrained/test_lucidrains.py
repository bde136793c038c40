"""Models of denoising-diffusion-pytorch."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign_models import KNOWN
from running import Dng
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.modules import GuidedSampler
from dng_lightning.modules.models import load_model
from dng_lightning.pretrained import LucidrainsModel

# --- lucidrains ---


def lucidrains(path: Path, objective: str = "pred_v", **settings: Any) -> Any:
    """What its Trainer saves."""
    library = pytest.importorskip(
        "denoising_diffusion_pytorch", reason="DENOISING-DIFFUSION-PYTORCH MISSING (extra lucidrains)"
    )
    from ema_pytorch import EMA

    torch.manual_seed(0)
    net = library.Unet(dim=8, dim_mults=(1, 2), channels=1, attn_heads=(2, 3), attn_dim_head=4, **settings)
    diffusion = library.GaussianDiffusion(net, image_size=8, timesteps=50, objective=objective)
    ema = EMA(diffusion, update_every=1)
    ema.update()
    with torch.no_grad():
        net.final_conv.bias += 1  # the averaged weights are others
    content = {"step": 1, "model": diffusion.state_dict(), "opt": {}, "ema": ema.state_dict(), "scaler": None}
    torch.save(content | {"version": "2.3.4"}, path)
    return ema.ema_model.eval(), diffusion.eval()


@pytest.mark.parametrize(("objective", "ours"), [("pred_noise", "eps"), ("pred_x0", "x0"), ("pred_v", "v")])
def test_lucidrains_is_read_from_the_file(objective: str, ours: str, tmp_path: Path):
    path = tmp_path / "model-3.pt"
    for ema, theirs in zip((True, False), lucidrains(path, objective, full_attn=(True, False)), strict=True):
        module = load_model(LucidrainsModel(str(path), image_size=8, ema=ema))
        assert (module.prediction, module.schedule.T, module.clip, module.image_shape) == (ours, 50, 1.0, (1, 8, 8))
        x_t = torch.randn(2, 1, 8, 8)
        with torch.no_grad():
            for t in (1, 30, 50):
                wanted = theirs.model_predictions(x_t, torch.full((2,), t - 1)).pred_x_start
                level = module.schedule.level(t)
                assert torch.allclose(module(x_t, level), wanted, atol=1e-3 * float(wanted.abs().max()))


def test_lucidrains_with_classes(tmp_path: Path):
    reason = "DENOISING-DIFFUSION-PYTORCH MISSING (extra lucidrains)"
    library = pytest.importorskip("denoising_diffusion_pytorch.classifier_free_guidance", reason=reason)
    torch.manual_seed(0)
    net = library.Unet(dim=8, num_classes=3, dim_mults=(1, 2), channels=1, attn_heads=2, attn_dim_head=4).eval()
    with torch.no_grad():
        net.null_classes_emb += 2
    diffusion, path = library.GaussianDiffusion(net, image_size=8, timesteps=50, objective="pred_v"), tmp_path / "m.pt"
    torch.save({"model": diffusion.state_dict()}, path)
    model = LucidrainsModel(str(path), 8, ema=False, attn_heads=2, class_names=["cat", "dog", "horse"])
    module = load_model(model)
    assert (module.null_class, module.class_names, module.prediction) == (3, ("cat", "dog", "horse"), "v")
    x_t, level = torch.randn(4, 1, 8, 8), module.schedule.level(30)
    times, seen = torch.full((4,), 29), list[Tensor]()
    with torch.no_grad():
        for drop, labels in ((0.0, torch.tensor([0, 1, 2, 0])), (1.0, torch.full((4,), 3))):
            v = net(x_t, times, labels.clamp(max=2), cond_drop_prob=drop)
            wanted = diffusion.predict_start_from_v(x_t, times, v)
            seen.append(module(x_t, level, labels))
            torch.testing.assert_close(seen[-1], wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    mixed = module(x_t, level, torch.tensor([0, 1, 3, 3]))
    torch.testing.assert_close(mixed, torch.cat([seen[0][:2], seen[1][2:]]), rtol=0, atol=1e-5)
    drawn = GuidedSampler(model, "dog", steps=2).draw([0, 1])  # type: ignore[arg-type]
    assert drawn.images.isfinite().all()
    with pytest.raises(SettingError, match="has 3 classes, not 2"):
        load_model(LucidrainsModel(str(path), 8, ema=False, attn_heads=2, class_names=["cat", "dog"]))
    with pytest.raises(SettingError, match="attn_heads 3 does not divide the width 8 of its attention"):
        load_model(LucidrainsModel(str(path), 8, ema=False, attn_heads=3))


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_lucidrains_with_min_snr_weights(objective: str, tmp_path: Path):
    library = pytest.importorskip("denoising_diffusion_pytorch", reason="DENOISING-DIFFUSION-PYTORCH MISSING")
    from dng_lightning.pretrained.lucidrains import _prediction

    net = library.Unet(dim=8, dim_mults=(1,), channels=1)
    for schedule in ("linear", "cosine", "sigmoid"):
        made = library.GaussianDiffusion(
            net, image_size=8, objective=objective, beta_schedule=schedule, min_snr_loss_weight=True
        )
        found = _prediction(made.loss_weight.double(), made.alphas_cumprod.double(), "mine")
        assert found == {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[objective]


def test_lucidrains_alone_and_on_the_command_line(tmp_path: Path, dng: Dng, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lucidrains(tmp_path / "model-3.pt")
    with pytest.raises(SettingError, match=r"model-3.pt does not say all .* by class_path LucidrainsModel with"):
        load_model(str(tmp_path / "model-3.pt"))
    model = {"class_path": "LucidrainsModel", "init_args": {"path": str(tmp_path / "model-3.pt"), "image_size": 8}}
    with pytest.raises(SettingError, match=r"is unconditional: name negative_checkpoints for the forbidden classes"):
        GuidedSampler(LucidrainsModel(str(tmp_path / "model-3.pt"), 8), "3", **KNOWN)  # type: ignore[arg-type]
    settings = {"checkpoint": model, "guidances": [{"class_path": "Unguided"}], "forbidden": "3"} | KNOWN
    overlay = tmp_path / "model.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"class_path": "GuidedSampler", "init_args": settings}}))
    few = ["--data.num_samples=6", "--data.reference_data=Digits"]
    dng("test", "--config=test.yaml", f"--config={overlay}", *few)
    results = tmp_path / "results" / "model-3.pt-without-3"
    with (results / "results.csv").open() as file:
        assert next(csv.DictReader(file))["method"] == "Unguided"
    assert json.loads((results / "inputs.json").read_text())["checkpoint"]


def test_lucidrains_that_is_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model-3.pt"
    lucidrains(path)
    content = torch.load(path, weights_only=True)
    torch.save({"ema": {"step": torch.tensor(1)}}, tmp_path / "other.pt")
    with pytest.raises(SettingError, match=r"other.pt is no model-N.pt of denoising-diffusion-pytorch's Trainer"):
        load_model(LucidrainsModel(str(tmp_path / "other.pt"), 8))
    content["ema"]["ema_model.model.classes_emb.weight"] = torch.zeros(1, 8)
    torch.save(content, path)
    with pytest.raises(SettingError, match=r"holds no supported Unet: "):
        load_model(LucidrainsModel(str(path), 8))
    monkeypatch.setitem(sys.modules, "denoising_diffusion_pytorch", None)
    with pytest.raises(
        SettingError, match=r"needs denoising_diffusion_pytorch: pip install 'dng-lightning\[lucidrains\]'"
    ):
        load_model(LucidrainsModel(str(path), 8))
