"""Samples of diffusers' pipelines, stock and modular, and of our sampler from the same noise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    CFGNegativePrompt,
    DynamicNegativeGuidance,
    DynamicSafeDenoiser,
    Guidance,
    LimitedInterval,
    PositiveAndNegative,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
)
from dng_lightning.guidance.references import References
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.sampling import ImageNoise, Sampler, Trajectories, sample
from dng_lightning.text_to_image import TextPredictor, TextToImageModel, guided

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

SEEDS, PROMPTS, NEGATIVES = [3, 14], ["a red seven", "a green one"], ["blue", "dark"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
# odds of at most 4: those of a posterior near 1 would magnify the rounding that the two samplers differ by
TRACKED = TrackedPosterior(prior=0.3, p_max=0.8)
DYNAMIC = DynamicNegativeGuidance(2, TRACKED)
UNSHIFTED = DynamicNegativeGuidance(1, replace(TRACKED, guidance_shift_weight=0.0))
BOTH = PositiveAndNegative(DYNAMIC, 3.0)
REFERENCES = References(torch.zeros(2, 3, 16, 16))
REFERENCED = [
    kind(references=REFERENCES) for kind in (SafeDenoiser, DynamicSafeDenoiser, ShieldedDiffusion, SafetyGuidedFlow)
]
METHODS = [
    DYNAMIC,
    BOTH,
    PositiveAndNegative(UNSHIFTED, 3.0),
    PositiveAndNegative(UNSHIFTED, 3.0, independent=True),
    SafeLatentDiffusion(scale=2.0),
    CFGNegativePrompt(7.5),
    LimitedInterval(DYNAMIC, 0.3, 0.9),
]
Drawn = tuple[Tensor, Tensor | None, Tensor]
"""Latents, posterior and scale, of each image."""


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
    folder: Path,
    guidance: Guidance,
    sampler: Sampler,
    negatives: list[str] | None = NEGATIVES,
    seeds: list[int] = SEEDS,
) -> Drawn:
    """One image a seed, each of its own prompt."""
    model, found = TextToImageModel.load(str(folder)), []
    for number, seed in enumerate(seeds):
        prompts = model.encode([PROMPTS[number]], negatives[number : number + 1] if negatives else [])
        predictor = TextPredictor(model, prompts, torch.zeros(1, dtype=torch.long))
        noise, seen = ImageNoise([seed], model.latent_shape()), Trajectories()
        latents = sample(predictor, guidance, model.schedule, noise, sampler, [seen])
        found.append((latents, seen.posterior, seen.scale))
    return tuple(None if part[0] is None else torch.cat(part) for part in zip(*found, strict=True))  # type: ignore


def given(pipeline: Any, seeds: list[int] = SEEDS, **settings: Any) -> dict[str, Any]:
    """What makes a pipeline start from our latents and draw our noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    start = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    sigma = float((1 - pipeline.scheduler.alphas_cumprod[-1].double()) ** 0.5)
    texts = {"prompt": PROMPTS[: len(seeds)], "negative_prompt": NEGATIVES[: len(seeds)]}
    return texts | {"latents": sigma * start, "generator": generators, "num_inference_steps": 10} | settings


def stock(pipeline: Any, guidance: Guidance, eta: float | None = 1.0, **settings: Any) -> Drawn:
    """The same from a stock pipeline."""
    with guided(pipeline, guidance, eta) as hosted:
        own = {} if eta is None else {"eta": eta}
        latents = pipeline(**given(pipeline, **own | {"output_type": "latent"} | settings)).images
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


def timesteps(trajectories: Trajectories) -> list[float]:
    return [level.timestep for level in trajectories.levels]


def stop_after_three(pipeline: Any, index: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pipeline._interrupt = index == 2
    return tensors


def refused(call: Any) -> str:
    with pytest.raises(SettingError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line
