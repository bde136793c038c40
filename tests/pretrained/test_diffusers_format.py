"""Models in diffusers' format: the paper's base network, with random weights."""

import json
import math
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from running import CONFIGS, Dng

from dng_lightning import posterior
from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierGuidance, DynamicNegativeGuidance, SafeDenoiser, Unguided
from dng_lightning.kernel import NoiseLevel
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler
from dng_lightning.parametrization import denoised_of
from dng_lightning.pretrained import diffusers_format
from dng_lightning.schedule import LinearSchedule

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra diffusers)")

# What google/ddpm-cifar10-32 holds.
PAPER = {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256], "norm_eps": 1e-6, "attention_head_dim": None,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
}  # fmt: skip
PAPER_SCHEDULER = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "variance_type": "fixed_large"}
TINY = PAPER | {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4,
    "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def saved(folder: Path, network: dict[str, Any], **scheduler: Any) -> Any:
    """Save a pipeline of random weights; its network."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**network).eval()
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(**PAPER_SCHEDULER | scheduler)).save_pretrained(folder)
    return net


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    saved(tmp_path / "tiny", TINY)
    return tmp_path / "tiny"


@pytest.mark.parametrize(("network", "parameters"), [(PAPER, 35_746_307), (TINY, None)], ids=["paper", "tiny"])
def test_the_output_is_diffusers_own_to_the_last_bit(network: dict[str, Any], parameters: int | None, tmp_path: Path):
    net = saved(tmp_path, network).requires_grad_(False)  # torch computes with frozen weights by other routines
    module = DiffusionModule.load(str(tmp_path))
    assert parameters in (None, sum(parameter.numel() for parameter in module.parameters()))
    assert module.image_shape == (network["in_channels"], network["sample_size"], network["sample_size"])
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not module.training
    x_t = torch.randn(2, *module.image_shape)
    with torch.no_grad():
        for t in (1, 1000):
            level = module.schedule.level(t)
            expected = net(x_t, t - 1).sample  # diffusers counts its timesteps from 0
            assert torch.equal(module(x_t, level), denoised_of(expected, x_t, level.alpha, level.sigma, "eps"))
        other = NoiseLevel(level.alpha, level.sigma, 500)
        assert not torch.equal(module(x_t, other), module(x_t, level))


def test_google_s_layout_has_everything_in_one_folder(tiny: Path):
    expected = DiffusionModule.load(str(tiny))
    for part in ("unet", "scheduler"):
        for path in (tiny / part).iterdir():
            path.rename(tiny / path.name)
        (tiny / part).rmdir()
    flat, x_t = DiffusionModule.load(str(tiny)), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for level in (flat.schedule.level(t) for t in (3, 700)):
            assert torch.equal(flat(x_t, level), expected(x_t, level))


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")])
def test_the_schedule_and_the_prediction_are_the_scheduler_s(theirs: str, ours: str, tmp_path: Path):
    saved(tmp_path, TINY, prediction_type=theirs, num_train_timesteps=50, beta_end=0.3)
    module = DiffusionModule.load(str(tmp_path))
    assert module.prediction == ours
    assert module.schedule.agrees(LinearSchedule(50, 1e-4, 0.3))
    assert not module.schedule.agrees(LinearSchedule(50, 1e-4, 0.301))
    assert not module.schedule.agrees(LinearSchedule(51, 1e-4, 0.3))


def test_the_paper_s_pair(tiny: Path, tiny_single_class: Path, tmp_path: Path):
    """The base does not say what its classes are called; the negative, or else the classifier, does."""
    pair = {"checkpoint": str(tiny), "negative_checkpoints": [str(tiny_single_class)], "steps": 3}
    sampler = GuidedSampler(**pair, classifier=None, forbidden="0")
    assert sampler.class_names == tuple("0123456789")
    assert sampler.draw([0, 1]).images.isfinite().all()
    with pytest.raises(SettingError, match="no class 'plane'; the checkpoint knows 0, 1, 2"):
        GuidedSampler(**pair, classifier=None, forbidden="plane")
    pair["negative_checkpoints"] = [str(tiny)]
    assert GuidedSampler(**pair, classifier="digits-classifier", forbidden="3").forbidden == [3]
    with pytest.raises(SettingError, match="does not name its classes: name a classifier"):
        GuidedSampler(**pair, classifier=None, forbidden="0")
    saved(tmp_path / "other", TINY, beta_end=0.03)
    pair["checkpoint"] = str(tmp_path / "other")
    with pytest.raises(SettingError, match=r"negative checkpoint has another noise schedule than .*other"):
        GuidedSampler(**pair, classifier="digits-classifier")


def test_the_paper_s_pair_at_its_size(in_place: Path, dng: Dng, tmp_path: Path):
    """As `cifar10_paper.yaml` puts it together, only with other weights: two steps of one image."""
    saved(tmp_path / "base", PAPER)
    quick = ["--model.compile=false", "--data.batch_size=1", "--data.val_size=20", "--trainer.max_steps=1"]
    quick += ["--trainer.precision=32-true"]  # half precision is emulated by most CPUs
    quick += ["--trainer.callbacks=[{class_path: Export}]", "--trainer.enable_checkpointing=false"]
    folder = f"--trainer.default_root_dir={tmp_path / 'single'}"
    dng("fit", "--config=cifar10_only_airplane.yaml", *quick, "--trainer.limit_val_batches=0", folder)
    theirs = CONFIGS["cifar10_paper"]["model"]["init_args"]
    first = theirs["guidances"][0]["init_args"]
    guidance = DynamicNegativeGuidance(**first | {"posterior": getattr(posterior, first["posterior"]["class_path"])()})
    pair = {"checkpoint": str(tmp_path / "base"), "negative_checkpoints": [str(tmp_path / "single")]}
    settings = {name: theirs[name] for name in ("forbidden", "variance")}
    drawn = GuidedSampler(**pair, **settings, guidance=guidance, steps=2, classifier=None).draw([0])
    assert drawn.images.shape == (1, 3, 32, 32)
    assert drawn.images.isfinite().all()


def test_alone_it_draws_whatever_needs_no_forbidden_prediction(
    tiny: Path, tiny_noisy_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dng: Dng
):
    torch.save(torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8), tmp_path / "references.pt")
    references, known = str(tmp_path / "references.pt"), {"classifier": "digits-classifier", "steps": 3}
    nothing = {"classifier": None, "steps": 3, "forbidden": []}
    noisy = {**known, "noise_conditional_classifier": str(tiny_noisy_classifier), "forbidden": "3"}
    for guidance, settings in (
        (Unguided(), nothing),
        (Unguided(), nothing | {"forbidden": None}),
        (SafeDenoiser(references=references), nothing),
        (SafeDenoiser(references=references), known),
        (ClassifierGuidance(), noisy),
    ):
        assert GuidedSampler(str(tiny), guidance=guidance, **settings).draw([0, 1]).images.isfinite().all()
    monkeypatch.chdir(tmp_path)
    compared = [f"--model.guidances=[Unguided, {{class_path: SafeDenoiser, init_args: {{references: {references}}}}}]"]
    compared += [
        "--model.classifier=digits-classifier",
        "--model.steps=2",
        "--data.num_samples=4",
        "--data.reference_data=Digits",
    ]
    dng("test", f"--model.checkpoint={tiny}", "--model.forbidden=[]", *compared)
    assert (tmp_path / "results" / "tiny-without-nothing" / "results.csv").exists()


def test_alone_it_has_no_forbidden_predictions(tiny: Path, dng: Dng, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SettingError, match=r"is unconditional: name negative_checkpoints .* than DynamicNegativeG"):
        GuidedSampler(str(tiny), classifier="digits-classifier")
    with pytest.raises(SettingError, match=r"does not name its classes: name a classifier .* or set forbidden to"):
        GuidedSampler(str(tiny), classifier=None, guidance=Unguided())
    settings = [f"--model.checkpoint={tiny}", "--model.classifier=digits-classifier", "--model.forbidden=3"]
    with pytest.raises(SystemExit):  # a calibration reads these predictions, whatever the guidances
        dng("test", "--config=calibrate.yaml", *settings, "--model.guidances=[Unguided]", "--model.steps=2")
    assert "is unconditional: name negative_checkpoints" in capsys.readouterr().err


# --- what cannot be used ---


def refused(name: Path | str) -> str:
    with pytest.raises(SettingError) as caught:
        DiffusionModule.load(str(name))
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_folders_of_something_else(tiny: Path, tmp_path: Path):
    for number, part in enumerate(("unet/diffusion_pytorch_model.safetensors", "unet/config.json", "scheduler")):
        damaged = shutil.copytree(tiny, tmp_path / f"damaged{number}")
        (shutil.rmtree if (damaged / part).is_dir() else Path.unlink)(damaged / part)
        assert f"{damaged} holds no pixel or latent diffusion model in diffusers' format: " in refused(damaged)
    weights = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "holds no pixel or latent" in refused(tiny)
    for content in ("", "[]", json.dumps({"unet": ["diffusers", "UNet2DConditionModel"], "vae": []})):
        (tiny / "model_index.json").write_text(content)
        assert "holds no pixel or latent" in refused(tiny)


def test_a_folder_without_an_index_says_what_it_holds(tiny: Path, tmp_path: Path):
    (tmp_path / "some").mkdir()
    assert "some holds no model.ckpt or model.safetensors or model_index.json but nothing" in refused(tmp_path / "some")
    line = refused(tiny / "unet")
    assert "but config.json, diffusion_pytorch_model.safetensors: name a file in it, or a network of diffusers" in line


@pytest.mark.parametrize("setting", [{"out_channels": 3}, {"class_embed_type": "timestep"}])
def test_networks_of_another_kind(setting: dict[str, object], tmp_path: Path):
    saved(tmp_path, TINY | setting)
    assert "its inputs or outputs are not only images and class labels" in refused(tmp_path)


# --- what its scheduler says ---

INTERCHANGEABLE = ["DDIM", "PNDM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep"]
OTHERS = ["ScoreSdeVe", "CMStochasticIterative", "LCM", "DDPMWuerstchen"]


def with_scheduler(folder: Path, scheduler: Any) -> Path:
    diffusers.DDPMPipeline(diffusers.UNet2DModel(**TINY), scheduler).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", INTERCHANGEABLE)
def test_schedulers_of_the_same_levels_are_interchangeable(name: str, tmp_path: Path):
    levels = {"beta_start": 0.001, "beta_end": 0.1, "beta_schedule": "scaled_linear", "num_train_timesteps": 50}
    scheduler = getattr(diffusers, f"{name}Scheduler")(**levels)
    module = DiffusionModule.load(str(with_scheduler(tmp_path, scheduler)))
    assert module.schedule.agrees(diffusers_format.schedule_of(diffusers.DDPMScheduler(**levels)))


@pytest.mark.parametrize("name", OTHERS)
def test_schedulers_of_other_levels_are_named(name: str, tmp_path: Path):
    with_scheduler(tmp_path, getattr(diffusers, f"{name}Scheduler")())
    message = refused(tmp_path)
    assert f"the noise levels of its {name}Scheduler are not supported: only those of DDPM" in message
    assert message.endswith("; or set schedule and prediction (class_path DiffusersModel)")


def test_levels_that_the_betas_do_not_say_are_named():
    with pytest.raises(SettingError, match="the noise levels of its CogVideoXDDIMScheduler are not supported"):
        diffusers_format.schedule_of(diffusers.CogVideoXDDIMScheduler())


def test_other_settings_that_change_the_images_are_named(tmp_path: Path):
    with_scheduler(tmp_path, diffusers.DDPMScheduler(thresholding=True))
    assert "the thresholding of its DDPMScheduler is not supported" in refused(tmp_path)
    with_scheduler(tmp_path, diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"))
    assert "prediction_type flow_prediction of its UniPCMultistepScheduler is not supported" in refused(tmp_path)
    saved(tmp_path, TINY | {"sample_size": None})
    assert "sample_size, the size of the images, is missing" in refused(tmp_path)


def test_images_are_clipped_as_its_scheduler_clips_them(tmp_path: Path):
    def clip(**settings: Any) -> float | None:
        return GuidedSampler(str(tmp_path), [], Unguided(), steps=3, classifier=None, **settings).sampler.clip

    saved(tmp_path, TINY, clip_sample=True, clip_sample_range=2.0)
    assert [clip(), clip(clip=1.0), clip(clip=math.inf)] == [2.0, 1.0, math.inf]
    saved(tmp_path, TINY, clip_sample=False)
    assert clip() is None


def test_a_classifier_is_not_looked_for_on_the_hub(tiny: Path):
    with pytest.raises(SettingError, match="No checkpoint 'google/ddpm-cifar10-32'"):
        ClassifierModule.load("google/ddpm-cifar10-32")
    with pytest.raises(SettingError, match=r"is no checkpoint of a ClassifierModule|is refused"):
        ClassifierModule.load(str(tiny))


def test_without_diffusers(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    mend = "needs diffusers: pip install 'dng-lightning[diffusers]'"
    assert refused(tiny) == f"{tiny} {mend}"
    assert refused("google/ddpm-cifar10-32").endswith(f"a model of the Hugging Face hub {mend}")


def test_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    line = refused("google/ddpm-cifar10-32")
    assert line.startswith("google/ddpm-cifar10-32 is not a checkpoint here, and cannot be downloaded from the Hugging")


def test_a_folder_here_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    for name in ("logs/mine", "nowhere/mine.ckpt", "mine", "./a/b"):
        assert refused(name).startswith(f"No checkpoint '{name}'")


def test_what_the_hub_has_is_read_from_its_cache(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        diffusers.DiffusionPipeline, "download", lambda name: str(tiny) if name == "google/tiny" else None
    )
    assert DiffusionModule.load("google/tiny").image_shape == (1, 8, 8)
