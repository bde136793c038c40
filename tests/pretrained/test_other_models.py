"""Diffusion models of other libraries; every file is made here, with random weights."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import Dng
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierFreeGuidance, Unguided
from dng_lightning.modules import DiffusionModule, GuidedSampler
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.modules.judges import load_classifier
from dng_lightning.modules.models import load_model
from dng_lightning.parametrization import denoised_of
from dng_lightning.pretrained import DiffusersModel, LucidrainsModel
from dng_lightning.pretrained.diffusers_format import variant_of
from dng_lightning.schedule import RectifiedFlowSchedule
from dng_lightning.storage import safe_checkpoint

TINY = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4,
    "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
NAMES = list("0123456789")
KNOWN = {"classifier": "digits-classifier", "steps": 2}


# --- diffusers ---


@pytest.fixture
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="diffusers is not installed (extra diffusers)")


def saved(diffusers: Any, folder: Path, variant: str | None = None, **network: Any) -> Any:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**TINY | network).eval().requires_grad_(False)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder, variant=variant)
    return net


def expected(module: DiffusionModule, net: Any, x_t: Tensor, labels: Tensor | None) -> Tensor:
    level = module.schedule.level(500)
    return denoised_of(net(x_t, 499, class_labels=labels).sample[:, :1], x_t, level.alpha, level.sigma, "eps")


def test_class_conditional_with_a_null_class(diffusers: Any, tmp_path: Path):
    net = saved(diffusers, tmp_path, num_class_embeds=11)
    with pytest.raises(SettingError, match=r"has 11 class embeddings: set class_names, or null_class"):
        load_model(str(tmp_path))
    for settings in ({"class_names": NAMES}, {"null_class": True}):
        module = load_model(DiffusersModel(str(tmp_path), **settings))  # type: ignore[arg-type]
        x_t, labels, null = torch.randn(2, 1, 8, 8), torch.tensor([3, 7]), torch.tensor([10, 10])
        level = module.schedule.level(500)
        assert torch.equal(module(x_t, level, labels), expected(module, net, x_t, labels))
        assert torch.equal(module(x_t, level), expected(module, net, x_t, null))
    sampler = GuidedSampler(DiffusersModel(str(tmp_path), null_class=True), "3", **KNOWN)  # type: ignore[arg-type]
    assert sampler.class_names == tuple(NAMES)
    assert sampler.draw([0, 1]).images.isfinite().all()
    alone = GuidedSampler(DiffusersModel(str(tmp_path), null_class=True), "3", classifier=None, steps=2)
    assert alone.class_names == tuple(NAMES)  # its labels
    with pytest.raises(SettingError, match=r"has 11 class embeddings, not 9: set class_names"):
        load_model(DiffusersModel(str(tmp_path), class_names=NAMES[:9]))


def test_class_conditional_without_a_null_class(diffusers: Any, tmp_path: Path):
    net = saved(diffusers, tmp_path, num_class_embeds=10)
    model = DiffusersModel(str(tmp_path), class_names=NAMES)
    module, x_t, labels = load_model(model), torch.randn(2, 1, 8, 8), torch.tensor([3, 9])
    assert torch.equal(module(x_t, module.schedule.level(500), labels), expected(module, net, x_t, labels))
    with pytest.raises(SettingError, match=r"has no null class, so no unconditional prediction: set class_labels, or"):
        GuidedSampler(model, "3", **KNOWN)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"ClassifierFreeGuidance needs the unconditional prediction, .* has none"):
        GuidedSampler(model, [], ClassifierFreeGuidance(), class_labels="7", **KNOWN)  # type: ignore[arg-type]
    assert GuidedSampler(model, "3", class_labels="7", **KNOWN).draw([0]).images.isfinite().all()  # type: ignore[arg-type]


def test_variants_subfolders_and_networks_alone(diffusers: Any, tmp_path: Path):
    net = saved(diffusers, tmp_path / "models" / "mine", variant="fp16")
    module = load_model(DiffusersModel(str(tmp_path), subfolder="models/mine", variant="fp16"))
    x_t = torch.randn(2, 1, 8, 8)
    assert torch.equal(module(x_t, module.schedule.level(500)), expected(module, net, x_t, None))
    assert next(module.parameters()).dtype == torch.float32
    only = load_model(str(tmp_path / "models" / "mine"))  # its files have no other variant
    assert torch.equal(only(x_t, only.schedule.level(500)), expected(module, net, x_t, None))
    alone = tmp_path / "models" / "mine" / "unet"
    with pytest.raises(SettingError, match=r"it has no scheduler: set schedule and prediction"):
        load_model(DiffusersModel(str(alone), variant="fp16"))
    flow = load_model(
        DiffusersModel(str(alone), variant="fp16", schedule=RectifiedFlowSchedule(100), prediction="flow")
    )
    assert (flow.prediction, flow.schedule.T) == ("flow", 100)


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["a.fp16.safetensors", "b/c.fp16-00001-of-00002.safetensors", "b/c.safetensors.index.fp16.json"], "fp16"),
        (["a.fp16.bin", "b/c-00001-of-00002.fp16.bin"], "fp16"),
        (["a.fp16.safetensors", "a.safetensors"], None),
        (["a.fp16.safetensors", "a.non_ema.safetensors"], None),
        (["a-00001-of-00002.safetensors"], None),
        ([], None),
    ],
)
def test_the_only_variant_of_a_folder(files: list[str], variant: str | None, tmp_path: Path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == variant


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_read_from_its_scheduler(diffusers: Any, shift: float, tmp_path: Path):
    net, scheduler = saved(diffusers, tmp_path), diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(tmp_path)
    module, x_t = load_model(str(tmp_path)), torch.randn(2, 1, 8, 8)
    assert (module.prediction, module.schedule.T) == ("flow", 1000)
    for place in (0, 400):  # from the noisiest on
        t, sigma = scheduler.timesteps[place], scheduler.sigmas[place]
        wanted = x_t - sigma * net(x_t, t).sample
        assert torch.allclose(module(x_t, module.schedule.level(1000 - place)), wanted, atol=1e-4)
    nothing: dict[str, Any] = {"classifier": None, "forbidden": []}
    drawn = GuidedSampler(str(tmp_path), guidance=Unguided(), steps=3, eta=0.0, **nothing).draw([0])
    assert drawn.images.isfinite().all()
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    diffusers.DDPMPipeline(net, dynamic).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"the settings of its FlowMatchEulerDiscreteScheduler are not supported"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_s_preconditioning_is_read_from_its_scheduler(diffusers: Any, kind: str, tmp_path: Path):
    net, scheduler = saved(diffusers, tmp_path), getattr(diffusers, kind)(num_train_timesteps=100)
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(tmp_path)
    module = load_model(str(tmp_path))
    assert module.prediction == "edm"
    for t in (5, 60, module.schedule.T):
        level = module.schedule.level(t)
        x_t, sigma = level.sigma * torch.randn(2, 1, 8, 8), torch.tensor(level.sigma, dtype=torch.float32)
        output = net(scheduler.precondition_inputs(x_t, sigma), scheduler.precondition_noise(sigma)).sample
        wanted = scheduler.precondition_outputs(x_t, output, sigma)
        assert torch.allclose(module(x_t, level), wanted, rtol=1e-3, atol=1e-3)
    nothing: dict[str, Any] = {"classifier": None, "forbidden": []}
    assert GuidedSampler(str(tmp_path), guidance=Unguided(), steps=3, **nothing).draw([0]).images.isfinite().all()


def test_a_variance_is_left_out(diffusers: Any, tmp_path: Path):
    net, x_t = saved(diffusers, tmp_path, out_channels=2), torch.randn(2, 1, 8, 8)
    module = load_model(str(tmp_path))
    assert torch.equal(module(x_t, module.schedule.level(500)), expected(module, net, x_t, None))


def test_a_revision_of_the_hub_from_its_cache(diffusers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    revision = "a" * 40
    cache = tmp_path / "models--owner--tiny"
    saved(diffusers, cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "v2").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    download = huggingface_hub.snapshot_download

    def from_cache(name: str, **settings: Any) -> str:
        return str(download(name, cache_dir=tmp_path, **settings))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_cache)
    module = load_model(DiffusersModel("owner/tiny", revision="v2"))
    assert module.image_shape == (1, 8, 8)
    assert module.folder == cache / "snapshots" / revision
    with pytest.raises(
        SettingError, match=r"^owner/tiny is no folder here, and cannot be downloaded from the Hugging Face hub: "
    ):
        load_model(DiffusersModel("owner/tiny", revision="v3"))


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
