"""A guidance in diffusers' stock pipelines does what it does in our sampler with the same noise."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bridged import (
    BOTH,
    DYNAMIC,
    METHODS,
    PREDICTIONS,
    SEEDS,
    TRACKED,
    assert_same,
    from_modular,
    given,
    opened,
    opened_modular,
    ours,
    refused,
    stock,
    stop_after_three,
    timesteps,
)
from tiny_diffusion import tiny
from torch import Tensor

from dng_lightning.guidance import (
    AttentionSubtraction,
    CFGNegativePrompt,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    NormalizedAttention,
    OrthogonalAttention,
    Unguided,
    ValueSignFlip,
)
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.sampling import Sampler
from dng_lightning.text_to_image import guided

# --- a stock pipeline ---


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_every_method_does_what_it_does_in_our_sampler(guidance: Guidance, folder: Path, pipeline: Any):
    assert_same(stock(pipeline, guidance), ours(folder, guidance, Sampler(10)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_each_prediction_of_each_scheduler(prediction: str, tmp_path: Path):
    folder = tiny(tmp_path, prediction_type=prediction)
    assert_same(stock(opened(folder), BOTH), ours(folder, BOTH, Sampler(10)))
    for eta in (0.4, 1.0):
        found = stock(opened(folder, "DDIMScheduler"), BOTH, eta)
        assert_same(found, ours(folder, BOTH, Sampler(10, eta)))


def test_the_larger_variance(tmp_path: Path):
    """Every level is visited: diffusers draws noise at the last step too, unless that is level 1."""
    folder = tiny(tmp_path, num_train_timesteps=10, beta_end=0.3)
    found = stock(opened(folder, variance_type="fixed_large"), BOTH)
    assert_same(found, ours(folder, BOTH, Sampler(10, variance="beta")))


def test_stable_diffusion_xl(folder_xl: Path):
    assert_same(stock(opened(folder_xl), BOTH), ours(folder_xl, BOTH, Sampler(10)))
    assert_same(stock(opened(folder_xl, "DDIMScheduler"), DYNAMIC, 0.4), ours(folder_xl, DYNAMIC, Sampler(10, 0.4)))


@pytest.mark.parametrize("xl", [False, True], ids=["stable", "xl"])
@pytest.mark.parametrize("kind", [NormalizedAttention, OrthogonalAttention, AttentionSubtraction, ValueSignFlip])
def test_negatives_inside_the_attention(kind: type[AttentionGuidance], xl: bool, folder: Path, folder_xl: Path):
    place = folder_xl if xl else folder
    pipeline, guidance = opened(place), kind(ClassifierFreeGuidance(3.0))
    with guided(pipeline, guidance, negative_prompt="blue"):
        settings = given(pipeline, negative_prompt=None, guidance_scale=1.0, output_type="latent")
        found = pipeline(**settings).images
    expected, _, _ = ours(place, guidance, Sampler(10), ["blue", "blue"])
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=1e-4 * float(expected.abs().max()))
    plain, _, _ = ours(place, ClassifierFreeGuidance(3.0), Sampler(10), ["blue", "blue"])
    assert (expected - plain).abs().max() > 1e-3


def test_deterministic_sampling_is_warned_of_unless_the_divergence_is_asked_for(folder: Path):
    with pytest.warns(UserWarning, match="a posterior tracked at eta 0 is biased"):
        found = stock(opened(folder, "DDIMScheduler"), DYNAMIC, eta=0.0)
    with pytest.warns(UserWarning, match="biased"):
        assert_same(found, ours(folder, DYNAMIC, Sampler(10, eta=0.0)))
    unbiased = DynamicNegativeGuidance(2, replace(TRACKED, guidance_shift_weight=0.5, divergence=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = stock(opened(folder, "DDIMScheduler"), unbiased, eta=0.0)
    assert_same(found, ours(folder, unbiased, Sampler(10, eta=0.0)))


def test_guidances_that_avoid_nothing(folder: Path):
    for guidance, settings in ((CFGPlusPlus(0.6), {}), (ClassifierFreeGuidance(7.5), {"guidance_scale": 1.0})):
        found = stock(opened(folder, "DDIMScheduler"), guidance, 0.4, negative_prompt=None, **settings)
        assert_same(found, ours(folder, guidance, Sampler(10, 0.4), negatives=None))


def test_a_guidance_that_does_nothing_is_the_pipeline_itself(folder: Path):
    """And what the pipeline does besides with its two predictions leaves the one that both are alone."""
    for guidance, scale in ((Unguided(), 1.0), (ClassifierFreeGuidance(7.5), 7.5)):
        expected = opened(folder)(**given(opened(folder), negative_prompt=None, guidance_scale=scale, output_type="pt"))
        settings = {"negative_prompt": None, "guidance_rescale": 0.7, "guidance_scale": 3.0, "output_type": "pt"}
        found, _, _ = stock(opened(folder), guidance, **settings)
        torch.testing.assert_close(found, expected.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("EulerAncestralDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ],
    ids=["Euler ancestral", "Euler", "DPM-Solver++ SDE", "DPM-Solver++"],
)
def test_and_under_each_fast_scheduler(scheduler: str, settings: dict[str, Any], folder: Path):
    call = {"guidance_scale": 7.5, "output_type": "latent"}
    expected = opened(folder, scheduler, **settings)
    expected = expected(**given(expected), **call).images
    found, _, _ = stock(opened(folder, scheduler, **settings), CFGNegativePrompt(7.5), eta=None, **call)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_images_are_guided_each_by_its_own_posterior(pipeline: Any):
    _, posterior, scale = stock(pipeline, DYNAMIC)
    assert posterior is not None
    assert (posterior.shape, scale.shape) == ((2, 10, 1), (2, 10))
    posterior = posterior[..., 0]
    torch.testing.assert_close(posterior[:, 0], torch.full((2,), 0.3))
    assert (posterior[0, 1:] - posterior[1, 1:]).abs().min() > 1e-4
    torch.testing.assert_close(scale, 2 * posterior / (1 - posterior), rtol=1e-5, atol=0)


def test_each_call_starts_anew(pipeline: Any):
    with guided(pipeline, BOTH) as hosted:
        pipeline(**given(pipeline), output_type="latent")
        first = hosted.trajectories
        pipeline(**given(pipeline, seeds=[8]), output_type="latent")
        alone = hosted.trajectories
        interrupted = given(pipeline) | {"callback_on_step_end": stop_after_three}
        pipeline(**interrupted, output_type="latent")
        cut = hosted.trajectories
        pipeline(**given(pipeline), output_type="latent")
        again = hosted.trajectories
    assert alone.scale.shape == (1, 10)
    assert len(cut.levels) == 3
    assert first.levels == again.levels
    assert timesteps(first) == list(range(999, 0, -100))
    assert torch.equal(first.posterior, again.posterior)


def test_the_unet_is_asked_no_more_than_a_guidance_needs_and_afterwards_as_ever(pipeline: Any):
    sizes: list[int] = []
    forward = pipeline.unet.forward

    def counted(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(sample))
        return forward(sample, *args, **kwargs)

    pipeline.unet.forward = counted  # as libraries do that move weights
    for guidance, branches in ((DYNAMIC, 2), (BOTH, 3)):
        stock(pipeline, guidance)
        assert sizes == [2 * branches] * 10
        sizes.clear()
        assert pipeline.unet.forward is counted
    with guided(pipeline, DYNAMIC):
        pipeline.unet.forward = counted  # and as they put it back after a call: never unguided without a word
        assert "another library replaced the network's forward" in refused(lambda: pipeline(**given(pipeline)))
    assert pipeline.unet.forward is counted
    del pipeline.unet.forward
    with pytest.raises(ZeroDivisionError), guided(pipeline, DYNAMIC):
        1 / 0  # noqa: B018
    assert "forward" not in vars(pipeline.unet)
    assert not pipeline.unet._forward_pre_hooks


def test_leading_steps_and_several_images_a_prompt(folder: Path):
    """Stable Diffusion's own spacing, which starts below the noisiest level and ends above the data."""
    pipeline = opened(folder, timestep_spacing="leading", set_alpha_to_one=False)
    one = given(pipeline, seeds=SEEDS[:1]) | {"num_images_per_prompt": 2, "latents": None, "generator": None}
    with guided(pipeline, BOTH) as hosted:
        latents = pipeline(**one, output_type="latent").images
    assert timesteps(hosted.trajectories) == list(range(901, 0, -100))
    assert hosted.trajectories.scale.shape == (2, 10)
    assert latents.isfinite().all()


def test_half_precision_is_in_the_networks_alone(folder: Path, folder_xl: Path):
    for call, pipeline in ((stock, opened(folder)), (from_modular, opened_modular(folder_xl))):
        _, exact, _ = call(pipeline, DYNAMIC)
        half = {"latents": given(pipeline)["latents"].bfloat16()}
        latents, rough, scale = call(pipeline.to(torch.bfloat16), DYNAMIC, **half)
        assert (latents.dtype, rough.dtype, scale.dtype) == (torch.bfloat16, torch.float32, torch.float32)
        torch.testing.assert_close(rough[:, :3], exact[:, :3], rtol=0, atol=0.05)
