"""Models of diffusers: their classes, variants, schedules and revisions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import KNOWN, NAMES, expected, saved

from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierFreeGuidance, Unguided
from dng_lightning.modules import GuidedSampler
from dng_lightning.modules.models import load_model
from dng_lightning.pretrained import DiffusersModel
from dng_lightning.pretrained.diffusers_format import variant_of
from dng_lightning.schedule import RectifiedFlowSchedule

# --- diffusers ---


@pytest.fixture
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="diffusers is not installed (extra diffusers)")


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
