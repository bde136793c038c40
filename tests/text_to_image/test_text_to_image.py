"""Stable Diffusion's classes with random weights: our sampler is diffusers' own where the two do the same."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import tiny
from torch import Tensor

from dng_lightning.guidance import (
    CFGNegativePrompt,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    PositiveAndNegative,
    Unguided,
)
from dng_lightning.interfaces import Needs
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.sampling import ImageNoise, Sampler, SelfFilter, sample
from dng_lightning.text_to_image import TextPredictor, TextToImageModel, TextToImageSampler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

PROMPT, NEGATIVE = "a red seven", "blue"
SEEDS = [3, 14]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
NEUTRAL = DynamicNegativeGuidance(posterior=TrackedPosterior(prior=0.1))


def ours(
    model: TextToImageModel, guidance: Guidance, sampler: Sampler, prompt: str = PROMPT, negative: Sequence[str] = ()
) -> Tensor:
    """Latents of SEEDS."""
    predictor = TextPredictor(model, model.encode([prompt], negative), torch.zeros(2, dtype=torch.long))
    noise = ImageNoise(SEEDS, model.latent_shape())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of eta = 0
        return sample(predictor, guidance, model.schedule, noise, sampler)


def theirs(pipeline: Any, model: TextToImageModel, scale: float, output: str = "latent", **settings: Any) -> Tensor:
    """The same from diffusers: they start from the same latents, and draw the same noise later."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    start = torch.stack([torch.randn(model.latent_shape(), generator=g) for g in generators])
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 10, "latents": float(model.schedule.sigma[-1]) * start, "generator": generators}
    images: Tensor = pipeline([PROMPT] * 2, guidance_scale=scale, output_type=output, **given | settings).images
    return images


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Up to 1e-4 of the largest: their noise levels are fp32, ours fp64, and guidance of scale 7.5 magnifies it."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_is_diffusers_own(prediction: str, tmp_path: Path):
    model = TextToImageModel.load(str(tiny(tmp_path, prediction_type=prediction)))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    found = ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.0))
    assert_same(found, theirs(pipeline, model, 7.5))
    assert_same(ours(model, Unguided(), Sampler(10, eta=0.0)), theirs(pipeline, model, 1.0))
    other = ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.0), "a green one")
    assert (other - found).abs().max() > 1e-2 * found.abs().max()  # the prompt counts
    assert_same(ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.3)), theirs(pipeline, model, 7.5, eta=0.3))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("variance", "theirs_is"), [("beta_tilde", "fixed_small"), ("beta", "fixed_large")])
def test_ddpm_is_diffusers_own(prediction: str, variance: Any, theirs_is: str, tmp_path: Path):
    """Every level is visited, for "fixed_large" draws noise at the last step too unless that is level 1."""
    levels = {"num_train_timesteps": 10, "beta_end": 0.3}
    model = TextToImageModel.load(str(tiny(tmp_path, prediction_type=prediction, **levels)))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config, variance_type=theirs_is)
    found = ours(model, ClassifierFreeGuidance(7.5), Sampler(10, variance=variance))
    assert_same(found, theirs(pipeline, model, 7.5))


def test_ddpm_in_long_steps_is_diffusers_own(folder: Path, model: TextToImageModel):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    assert_same(ours(model, ClassifierFreeGuidance(7.5), Sampler(10)), theirs(pipeline, model, 7.5))


def test_a_negative_in_the_place_of_the_empty_prompt_is_diffusers_negative_prompt(
    folder: Path, model: TextToImageModel
):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    found = ours(model, CFGNegativePrompt(7.5), Sampler(10, eta=0.0), negative=[NEGATIVE])
    assert_same(found, theirs(pipeline, model, 7.5, negative_prompt=[NEGATIVE] * 2))


def test_an_image_that_is_drawn_anew_keeps_its_prompt(model: TextToImageModel):
    """Before the first step p is the prior, above the threshold of the early check: each chain is given up once."""
    guidance = SelfFilter(ClassifierFreeGuidance(7.5), NEUTRAL.posterior, (0.05, 0.99), (0.75, 0.0), max_draws=2)

    def draw(seeds: list[int], prompts: list[int]) -> Tensor:
        predictor = TextPredictor(model, model.encode([PROMPT, "a green one"], [NEGATIVE]), torch.tensor(prompts))
        x_0 = sample(predictor, guidance, model.schedule, ImageNoise(seeds, model.latent_shape()), Sampler(4))
        assert predictor.nfe == len(seeds) * 3 * (1 + 4)
        return x_0

    both = draw(SEEDS, [0, 1])
    assert_same(draw(SEEDS[1:], [1]), both[1:])
    assert (draw(SEEDS[1:], [0]) - both[1:]).abs().max() > 1e-2 * both.abs().max()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sdxl_is_diffusers_own(prediction: str, tmp_path: Path):
    model = TextToImageModel.load(str(tiny(tmp_path, xl=True, prediction_type=prediction)))
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path)
    assert_same(ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.0)), theirs(pipeline, model, 7.5))
    found = ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.3))
    assert_same(found, theirs(pipeline, model, 7.5, eta=0.3))
    found = ours(model, CFGNegativePrompt(7.5), Sampler(10, eta=0.0), negative=[NEGATIVE])
    assert_same(found, theirs(pipeline, model, 7.5, negative_prompt=[NEGATIVE] * 2))
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    assert_same(ours(model, ClassifierFreeGuidance(7.5), Sampler(10)), theirs(pipeline, model, 7.5))
    assert_same(ours(model, Unguided(), Sampler(10)), theirs(pipeline, model, 1.0))


def test_images_are_what_diffusers_decodes(folder: Path):
    module = TextToImageSampler(str(folder), PROMPT, steps=10, eta=0.0)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    samples = module.draw(SEEDS)
    expected = theirs(pipeline, module.model, 7.5, "pt")
    assert samples.images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(samples.images.clamp(-1, 1) / 2 + 0.5, expected, rtol=0, atol=1e-5)
    assert samples.nfe == 20  # prompt and empty prompt, ten steps
    assert expected.std() > 0.01


# --- predictions ---


def test_all_that_is_asked_for_comes_from_one_forward(model: TextToImageModel):
    prompts = model.encode(["a", "b"], ["c", "d"])
    assert (prompts.null, prompts.forbidden, len(prompts.texts["encoder_hidden_states"])) == (4, [2, 3], 5)
    predictor, calls = TextPredictor(model, prompts, torch.tensor([1, 0])), []
    x, level = torch.randn(2, *model.latent_shape()), model.schedule.level(600)
    hook = model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    given = predictor.predict(x, level, Needs(negatives=True, null=True))
    hook.remove()
    assert (len(calls), predictor.nfe) == (1, 8)
    with torch.no_grad():
        for found, numbers in [
            (given.denoised, [1, 0]),
            (given.null, [4, 4]),
            (given.negatives[:, 0], [2, 2]),
            (given.negatives[:, 1], [3, 3]),
        ]:
            torch.testing.assert_close(found, model(x, level, prompts.take(numbers)))
    active = torch.tensor([[False, True], [False, False]])
    given = predictor.predict(x, level, Needs(negatives=True, active=active))
    assert predictor.nfe == 8 + 3
    assert torch.equal(given.negatives[:, 0], given.denoised)


def test_half_precision_is_in_the_networks_alone(folder: Path):
    exact, rough = (TextToImageSampler(str(folder), PROMPT, NEGATIVE, NEUTRAL, precision=p) for p in ("fp32", "bf16"))
    assert (rough.model.denoiser.dtype, rough.model.vae.dtype) == (torch.bfloat16, torch.float32)
    x = torch.randn(2, *exact.chain_shape)
    level = exact.schedule.level(500)
    near, far = (module.predictor(NEUTRAL).predict(x, level).denoised for module in (rough, exact))
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, far, rtol=0, atol=0.05)


def test_less_memory_gives_the_same(folder: Path):
    settings = {"guidance": PositiveAndNegative(NEUTRAL, 3.0), "steps": 3}
    plain = TextToImageSampler(str(folder), PROMPT, NEGATIVE, **settings).draw(SEEDS)
    saving = TextToImageSampler(str(folder), PROMPT, NEGATIVE, save_memory=True, **settings).draw(SEEDS)
    torch.testing.assert_close(saving.images, plain.images, rtol=0, atol=1e-4)


def test_another_size(folder: Path):
    samples = TextToImageSampler(str(folder), PROMPT, steps=2, height=24, width=40).draw([0])
    assert samples.images.shape == (1, 3, 24, 40)


# --- guidance ---


def test_identical_prompts_leave_the_posterior_at_the_prior(folder: Path, capture_info: list[str]):
    guidance = PositiveAndNegative(NEUTRAL, 7.5)
    module = TextToImageSampler(str(folder), PROMPT, PROMPT, guidance, steps=10)
    assert capture_info == [
        f"{PROMPT!r} is both a prompt and a negative prompt: its images are not pushed away from it"
    ]
    guided, plain = module.draw(SEEDS), module.draw(SEEDS, module.unguided)
    assert guided.posterior is not None
    torch.testing.assert_close(guided.posterior, torch.full((2, 10, 1), 0.1), rtol=1e-3, atol=0)
    torch.testing.assert_close(guided.images, plain.images, rtol=0, atol=1e-4)


def test_a_negative_prompt_is_pushed_away_as_far_as_it_is_believed(folder: Path):
    guidance = PositiveAndNegative(DynamicNegativeGuidance(2, TrackedPosterior(prior=0.3)), 7.5)
    module = TextToImageSampler(str(folder), PROMPT, [NEGATIVE, "green"], guidance, steps=5)
    guided, plain = module.draw(SEEDS), module.draw(SEEDS, module.unguided)
    assert guided.posterior is not None
    assert guided.posterior.shape == (2, 5, 2)
    total = guided.posterior.double().sum(2)
    torch.testing.assert_close(guided.scale.double(), 2 * total / (1 - total), rtol=1e-4, atol=1e-9)
    assert not torch.allclose(guided.posterior, guided.posterior[:, :1], rtol=1e-2)  # it learned something
    assert (guided.images - plain.images).abs().max() > 1e-3
    assert guided.nfe == 5 * 4


def test_an_image_depends_on_its_seed_alone_and_prompts_take_turns(folder: Path):
    settings = {"guidance": PositiveAndNegative(NEUTRAL, 2.0), "steps": 3}
    module = TextToImageSampler(str(folder), [PROMPT, "a one"], NEGATIVE, **settings)
    both = module.draw([4, 5]).images
    for seed, prompt, image in zip((4, 5), (PROMPT, "a one"), both, strict=True):
        alone = TextToImageSampler(str(folder), prompt, NEGATIVE, **settings).draw([seed]).images[0]
        torch.testing.assert_close(image, alone, rtol=0, atol=1e-4)
