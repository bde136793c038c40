"""A guidance in a pipeline of diffusers', stock or modular, does what it does in our sampler: same latents, same noise."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import tiny
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DynamicNegativeGuidance,
    Guidance,
    LimitedInterval,
    PositiveAndNegative,
    SafeLatentDiffusion,
    SwappedNegative,
    Unguided,
)
from dng_lightning.sampling import ImageNoise, Sampler, Trajectories, sample
from dng_lightning.text_to_image import TextPredictor, TextToImageModel, guided, pipelines

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

SEEDS, PROMPTS, NEGATIVES = [3, 14], ["a red seven", "a green one"], ["blue", "dark"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
DYNAMIC = DynamicNegativeGuidance(scale=2, prior=0.3)
BOTH = PositiveAndNegative(DYNAMIC, 3.0)
METHODS = [
    DYNAMIC,
    BOTH,
    PositiveAndNegative(DynamicNegativeGuidance(scale=1, prior=0.3, own_push=0.0), 3.0),
    SafeLatentDiffusion(scale=2.0),
    SwappedNegative(7.5),
    LimitedInterval(DYNAMIC, 0.3, 0.9),
]
Drawn = tuple[Tensor, Tensor | None, Tensor]
"""Latents, posterior and scale, of each image."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("stable") / "tiny")


@pytest.fixture(scope="module")
def folder_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("stable") / "tiny-xl", xl=True)


@pytest.fixture
def pipeline(folder: Path) -> Any:
    return opened(folder)


@pytest.fixture
def modular(folder_xl: Path) -> Any:
    return opened_modular(folder_xl)


def opened(folder: Path, scheduler: str = "DDPMScheduler", **settings: Any) -> Any:
    """A stock pipeline."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **settings)
    return pipeline


def opened_modular(folder: Path, scheduler: str = "DDPMScheduler", **settings: Any) -> Any:
    """A modular pipeline."""
    pipeline = diffusers.ModularPipeline.from_pretrained(str(folder))
    pipeline.load_components([name for name in pipeline.component_names if name in ALL_PARTS])
    pipeline.set_progress_bar_config(disable=True)
    scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **settings)
    pipeline.update_components(scheduler=scheduler)
    return pipeline


ALL_PARTS = {"unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}


def ours(
    folder: Path, guidance: Guidance, sampler: Sampler, negatives: list[str] | None = NEGATIVES, seeds: list[int] = SEEDS
) -> Drawn:
    """One image a seed, each of its own prompt."""
    model, found = TextToImageModel.load(str(folder)), []
    for number, seed in enumerate(seeds):
        prompts = model.encode([PROMPTS[number]], negatives[number : number + 1] if negatives else [])
        predictor, noise, way = TextPredictor(model, prompts), ImageNoise([seed], model.latent_shape()), Trajectories()
        wanted = torch.zeros(1, dtype=torch.long)
        latents = sample(predictor, guidance, model.schedule, noise, sampler, wanted, way)
        found.append((latents, way.posterior, way.scale))
    return tuple(None if part[0] is None else torch.cat(part) for part in zip(*found, strict=True))  # type: ignore


def given(pipeline: Any, seeds: list[int] = SEEDS, **settings: Any) -> dict[str, Any]:
    """What makes a pipeline start from our latents and draw our noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    start = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    sigma = float((1 - pipeline.scheduler.alphas_cumprod[-1].double()) ** 0.5)
    texts = {"prompt": PROMPTS[: len(seeds)], "negative_prompt": NEGATIVES[: len(seeds)]}
    return texts | {"latents": sigma * start, "generator": generators, "num_inference_steps": 10} | settings


def stock(pipeline: Any, guidance: Guidance, eta: float = 1.0, **settings: Any) -> Drawn:
    """The same from a stock pipeline."""
    with guided(pipeline, guidance, eta) as hosted:
        latents = pipeline(**given(pipeline, **{"eta": eta, "output_type": "latent"} | settings)).images
    return latents, hosted.trajectories.posterior, hosted.trajectories.scale


def from_modular(pipeline: Any, guidance: Guidance, eta: float = 1.0, **settings: Any) -> Drawn:
    """The same from a modular one."""
    from dng_lightning.text_to_image.guider import Guider

    pipeline.update_components(guider=Guider(guidance, pipeline, eta))
    latents = pipeline(**given(pipeline, **{"eta": eta, "output": "latents"} | settings))
    trajectories = pipeline.guider.hosted.trajectories
    return latents, trajectories.posterior, trajectories.scale


def assert_same(found: Drawn, expected: Drawn) -> None:
    """Up to rounding: their noise levels are fp32, ours fp64."""
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other.to(one.dtype), rtol=0, atol=1e-4 * float(other.abs().max()))


# --- a stock pipeline ---


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_every_method_does_what_it_does_in_our_sampler(guidance: Guidance, folder: Path, pipeline: Any):
    assert_same(stock(pipeline, guidance), ours(folder, guidance, Sampler(10)))
