"""Samples of a family of pipelines, and of our sampler from the same noise."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    Guidance,
    PositiveAndNegative,
)
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import denoised_of
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.pretrained import diffusers_format
from dng_lightning.sampling import ImageNoise, Sampler, Trajectories, sample
from dng_lightning.sampling.noise import image_seeds
from dng_lightning.sampling.predictors import ClassConditionalPredictor
from dng_lightning.schedule import NoiseSchedule

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

from tiny_pipelines import Family

STEPS, SEEDS = 4, [3, 14]
PROMPTS, NEGATIVES = ["a red seven", "a green one"], ["blue", "dark"]
DYNAMIC = DynamicNegativeGuidance(2, TrackedPosterior(prior=0.3, p_max=0.8))
BOTH = PositiveAndNegative(DYNAMIC, 3.0)
ON = 4.0  # any scale with which the pipeline evaluates its negative prompts


def start(family: Family) -> tuple[Tensor, list[torch.Generator]]:
    """Draws for each image, and the generators that they came from."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return torch.stack([torch.randn(family.shape, generator=generator) for generator in generators]), generators


def drawn(pipeline: Any, family: Family, scale: float = ON, **settings: Any) -> Tensor:
    """Latents of the pipeline."""
    noise, generators = start(family)
    given = {"latents": noise_level(pipeline) * noise, "generator": generators, "output_type": "latent"}
    texts = {"prompt": PROMPTS, "negative_prompt": NEGATIVES, "num_inference_steps": STEPS}
    texts = {name: list(text) if isinstance(text, list) else text for name, text in texts.items()}  # some change them
    every = texts | given | family.call | {family.scale: scale} | settings
    if every["negative_prompt"] is None and "negative_prompt_embeds" not in every:
        del every["negative_prompt"]  # the default of some is ""
    result = pipeline(**every, return_dict=False)[0]
    return result if isinstance(result, Tensor) else torch.stack(result)


def noise_level(pipeline: Any) -> float:
    """Sigma where the chain starts."""
    if hasattr(pipeline.scheduler, "alphas_cumprod"):
        return float((1 - pipeline.scheduler.alphas_cumprod[-1].double()) ** 0.5)
    return 1.0


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The levels that the scheduler visited."""
    if hasattr(scheduler, "alphas_cumprod"):
        return diffusers_format.schedule_of(scheduler)
    sigmas, timesteps = scheduler.sigmas[:-1].flip(0).double(), scheduler.timesteps.flip(0)
    return NoiseSchedule(1 - sigmas, sigmas, torch.cat([torch.zeros(1), timesteps]))


def sampled(
    pipeline: Any, family: Family, guidance: Guidance, negatives: list[str] = NEGATIVES
) -> tuple[Tensor, Trajectories]:
    """The same by our sampler, after the pipeline has set its scheduler."""
    prediction = "flow" if not hasattr(pipeline.scheduler, "alphas_cumprod") else "eps"
    texts = family.texts(pipeline, PROMPTS, negatives)
    null = family.texts(pipeline, PROMPTS, ["", ""])["negative"]

    def denoiser(x_t: Tensor, level: NoiseLevel, labels: Tensor | None) -> Tensor:
        assert labels is not None
        outputs = [
            family.run(pipeline, x[None], torch.tensor([level.timestep]), one(rows, int(label) % 2))
            for x, label in zip(x_t, labels, strict=True)
            for rows in [(texts["prompt"], texts["negative"], null)[int(label) // 2]]
        ]
        return denoised_of(torch.cat(outputs), x_t, level.alpha, level.sigma, prediction)

    rows = torch.arange(2)
    predictor = ClassConditionalPredictor(denoiser, rows + 4, [rows + 2], rows)
    noise, seen, sigma = ImageNoise(SEEDS, family.shape), Trajectories(), noise_level(pipeline)
    first = noise()
    others = noise if family.generator else ImageNoise(image_seeds(sigma * first), family.shape)
    draws = itertools.chain([first], iter(others, None))
    latents = sample(predictor, guidance, schedule_of(pipeline.scheduler), lambda: next(draws), Sampler(STEPS), [seen])
    return latents, seen


def one(texts: Any, row: int) -> Any:
    """The text of an image."""
    if isinstance(texts, Tensor):
        return texts[row : row + 1]
    if isinstance(texts, list) and texts and isinstance(texts[0], Tensor):  # one an image
        return texts[row : row + 1]
    return None if texts is None else type(texts)(one(text, row) for text in texts)


def assert_same(found: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=atol * float(expected.abs().max()))
