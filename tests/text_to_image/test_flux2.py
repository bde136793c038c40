"""Flux.2 and Flux.2 Klein, whose pipelines take no negative prompt: `guided` reads the negative prompts itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierFreeGuidance, Guidance, NegativePrompting, NormalizedAttention, Unguided
from dng_lightning.text_to_image import PipelineSampler, guided, pipeline_sampler

pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")
pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")

import diffusers
from family_samples import BOTH, DYNAMIC, PROMPTS, SEEDS, STEPS, assert_same, sampled
from tiny_pipelines import Family, Texts, enlarge
from tiny_transformers import flux2

LAYERS = (1, 2)  # of the text encoder


def texts_flux2(pipeline: Any, prompts: list[str], negatives: list[str]) -> Texts:
    settings = {"max_sequence_length": 8, "text_encoder_out_layers": LAYERS}
    of = {"prompt": prompts, "negative": negatives}
    return {key: pipeline.encode_prompt(list(texts), **settings) for key, texts in of.items()}


def run_flux2(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    tokens, positions = texts
    ids = pipeline._prepare_latent_ids(torch.zeros(1, 16, 4, 4))
    guidance = torch.ones(1) if pipeline.transformer.config.guidance_embeds else None
    return pipeline.transformer(x, tokens, t / 1000, ids, positions, guidance, return_dict=False)[0]


FAMILY = Family(flux2, texts_flux2, run_flux2, (16, 16), off=1.0)


@pytest.fixture(scope="module", params=["Flux2Pipeline", "Flux2KleinPipeline"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    if not hasattr(diffusers, request.param):
        pytest.skip(f"DIFFUSERS TOO OLD: {request.param} was not tried")
    torch.manual_seed(0)
    made = flux2(request.param)
    made.set_progress_bar_config(disable=True)
    for part in (made.transformer, made.text_encoder):
        enlarge(part)
    return made


def scales(pipeline: Any) -> list[float]:
    """With which the pipeline evaluates the empty prompt itself, or does not; 1 for a guidance-distilled model."""
    return [1.0] if pipeline.transformer.config.guidance_embeds else [1.0, 4.0]


def drawn(pipeline: Any, guidance_scale: float = 1.0, **settings: Any) -> Tensor:
    """The packed latents after the last step."""
    noise = torch.stack([torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    last: list[Tensor] = []

    def noted(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last.append(tensors["latents"])
        return tensors

    call = {"height": 16, "width": 16, "max_sequence_length": 8, "text_encoder_out_layers": LAYERS}
    given = {"latents": noise.transpose(1, 2).unflatten(2, (4, 4)), "output_type": "latent", "prompt": list(PROMPTS)}
    more = {"num_inference_steps": STEPS, "guidance_scale": guidance_scale, "callback_on_step_end": noted}
    pipeline(**call | given | more | settings)
    return last[-1]


def test_at_scale_0_it_is_the_pipeline_itself(pipeline: Any):
    expected = drawn(pipeline)
    for guidance in (Unguided(), NegativePrompting(0)):
        with guided(pipeline, guidance, negative_prompt=["blue"] if guidance.needs().negatives else None):
            assert torch.equal(drawn(pipeline), expected)
    assert torch.equal(drawn(pipeline), expected)


def test_with_a_constant_scale_it_is_the_pipelines_own_guidance(pipeline: Any):
    if len(scales(pipeline)) == 1:
        with (
            guided(pipeline, ClassifierFreeGuidance(3.0)),
            pytest.raises(SettingError, match="call the pipeline with guidance_scale=1, or take"),
        ):
            drawn(pipeline, 3.0)
        return
    expected = drawn(pipeline, 3.0)
    assert (expected - drawn(pipeline)).abs().max() > 1e-2
    for scale in scales(pipeline):
        with guided(pipeline, ClassifierFreeGuidance(3.0)):
            assert_same(drawn(pipeline, scale), expected)


@pytest.mark.parametrize("guidance", [DYNAMIC, BOTH], ids=["dynamic", "with_prompt"])
def test_it_draws_what_our_sampler_draws(guidance: Guidance, pipeline: Any):
    for scale in scales(pipeline):
        with guided(pipeline, guidance, negative_prompt="blue") as hosted:
            found = drawn(pipeline, scale)
        expected, seen = sampled(pipeline, FAMILY, guidance, ["blue", "blue"])
        assert hosted.trajectories.posterior is not None
        assert seen.posterior is not None
        assert (hosted.trajectories.posterior - 0.3).abs().max() > 1e-3  # it moves
        torch.testing.assert_close(hosted.trajectories.posterior, seen.posterior, rtol=0, atol=1e-4)
        assert_same(found, expected)


def test_several_negative_prompts(pipeline: Any):
    with guided(pipeline, BOTH, negative_prompt=["blue", "dark"]) as hosted:
        drawn(pipeline)
    assert hosted.trajectories.posterior is not None
    assert hosted.trajectories.posterior.shape == (2, STEPS, 2)


def test_predict(pipeline: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline_sampler, "open_pipeline", lambda *_: (pipeline, Path("tiny")))
    call = {"max_sequence_length": 8, "text_encoder_out_layers": LAYERS, "guidance_scale": 1.0}
    sampler = PipelineSampler("tiny", "a red one", ["blue", "dark"], steps=3, height=16, width=16, call=call)
    seen = sampler.draw([3, 4], DYNAMIC)
    assert seen.images.shape == (2, 3, 16, 16)
    assert (seen.images - sampler.draw([3, 4], sampler.unguided).images).abs().max() > 1e-3
    torch.testing.assert_close(sampler.draw([4], DYNAMIC).images[0], seen.images[1], atol=1e-3, rtol=0)


def test_what_cannot_be(pipeline: Any):
    from PIL import Image

    with pytest.raises(SettingError, match=r"a Flux2\w*Pipeline is called without negative prompts: guided"):
        guided(pipeline, DYNAMIC).__enter__()
    with pytest.raises(SettingError, match=r"with a Flux2\w*Pipeline, take DynamicNegativeGuidance or NegativePrompt"):
        guided(pipeline, NormalizedAttention(Unguided()), negative_prompt="blue").__enter__()
    with (
        guided(pipeline, DYNAMIC, negative_prompt="blue"),
        pytest.raises(SettingError, match="does not support image prompts"),
    ):
        drawn(pipeline, image=Image.new("RGB", (64, 64)))
