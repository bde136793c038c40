"""The folder in diffusers' format that comes out of a training, and its parts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import TINY
from torch import Tensor

from dng_lightning.callbacks import Export
from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierFreeGuidance
from dng_lightning.pretrained import diffusers_format
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.schedule import CosineSchedule, KarrasSchedule, LinearSchedule, NoiseSchedule
from dng_lightning.storage import resources
from dng_lightning.text_to_image import TextPredictor, TextToImageModel
from scripts.captioned_digits import AutoencoderModule, PipelineExport, TextToImageModule
from scripts.captioned_images import networks

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

SETTINGS: dict[str, Any] = TINY["captioned_digits"]
COMMITTED = yaml.safe_load(resources.config("captioned_digits").read_text())["model"]["init_args"]
PROMPTS, SEEDS = ["a red seven", "a thin blue digit on white"], [3, 14]


def ours(model: TextToImageModel, steps: int = 10) -> Tensor:
    """Latents of PROMPTS."""
    predictor = TextPredictor(model, model.encode(PROMPTS), torch.arange(2))
    noise = ImageNoise(SEEDS, model.latent_shape())
    return sample(predictor, ClassifierFreeGuidance(3.0), model.schedule, noise, Sampler(steps))


# --- what comes out ---


@pytest.mark.parametrize(("half", "prediction"), [(False, "eps"), (True, "v")])
def test_both_readers_give_the_latents_of_the_trained_model(
    half: bool, prediction: Any, autoencoder: Path, tmp_path: Path
):
    torch.manual_seed(0)
    module = TextToImageModule(str(autoencoder), **SETTINGS, prediction=prediction).eval()
    module.scale = 0.7
    state = copy.deepcopy(module.state_dict())
    PipelineExport(half).write(module, tmp_path)
    assert all(torch.equal(weight, state[name]) for name, weight in module.state_dict().items())
    assert all(weight.dtype == torch.float32 for weight in module.state_dict().values())
    with torch.no_grad():
        expected = ours(module.model())
    model = TextToImageModel.load(str(tmp_path))
    assert (model.latent_shape(), model.prediction) == ((4, 8, 8), prediction)
    assert model.vae.config.scaling_factor == 0.7
    assert model.schedule.agrees(module.schedule)
    found = ours(model)
    tolerance = (0.02 if half else 1e-5) * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    start = torch.stack([torch.randn(model.latent_shape(), generator=g) for g in generators])
    theirs = pipeline(
        PROMPTS, guidance_scale=3.0, num_inference_steps=10, latents=float(model.schedule.sigma[-1]) * start,
        generator=generators, output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(theirs, found, rtol=0, atol=1e-3 * float(found.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(model.decode(found), pipeline.vae.decode(found / 0.7).sample, rtol=0, atol=1e-5)


def test_an_unknown_scale_is_not_exported(autoencoder: Path):
    with pytest.raises(SettingError, match="the scale of the latents is measured in training"):
        TextToImageModule(str(autoencoder), **SETTINGS).pipeline()


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> TextToImageModule:
    """The model of the committed configuration, untrained."""
    folder = tmp_path_factory.mktemp("committed")
    settings = yaml.safe_load(resources.config("captioned_digits_autoencoder").read_text())["model"]["init_args"]["net"]
    autoencoder = AutoencoderModule(settings)
    autoencoder.image_shape, autoencoder.class_names, autoencoder.seen_classes = (3, 32, 32), (), ()
    Export().write(autoencoder, folder)
    return TextToImageModule(str(folder), COMMITTED["unet"], COMMITTED["text_encoder"])


def test_the_committed_configuration_is_small_and_ships(committed: TextToImageModule, tmp_path: Path):
    parameters = sum(weight.numel() for part in (committed.net, committed.text_encoder) for weight in part.parameters())
    assert 5e6 < parameters < 8e6
    committed.scale = 1.0
    export = yaml.safe_load(resources.config("captioned_digits").read_text())["trainer"]["callbacks"][-1]
    assert export["class_path"] == "scripts.captioned_digits.PipelineExport"
    PipelineExport(**export["init_args"]).write(committed, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 25e6
    assert {path.name for path in tmp_path.rglob("*.safetensors")} == {
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
    }
    assert TextToImageModel.load(str(tmp_path)).latent_shape() == (4, 8, 8)


# --- schedules ---


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (LinearSchedule(), "linear"),
        (LinearSchedule(50, 0.001, 0.3), "linear"),
        (CosineSchedule(), "squaredcos_cap_v2"),
        (CosineSchedule(shift=0.1), None),
    ],
)
def test_diffusers_scheduler_has_our_levels(schedule: NoiseSchedule, kind: str | None):
    scheduler = networks.scheduler(schedule, "v")
    theirs = diffusers_format.schedule_of(scheduler)
    for mine, its in ((schedule.alpha, theirs.alpha), (schedule.sigma, theirs.sigma)):
        torch.testing.assert_close(its, mine, rtol=1e-4, atol=0)  # a beta of .999 in single precision
    assert scheduler.config.prediction_type == "v_prediction"
    assert (scheduler.config.trained_betas is None) == (kind is not None)
    if kind:
        assert scheduler.config.beta_schedule == kind


def test_a_schedule_that_diffusers_has_not(autoencoder: Path):
    with pytest.raises(SettingError, match="diffusers has no scheduler of this schedule"):
        TextToImageModule(str(autoencoder), **SETTINGS, schedule=KarrasSchedule())
