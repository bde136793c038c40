"""A guidance in each family of pipelines does what it does in our sampler with the same noise."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from family_samples import BOTH, DYNAMIC, NEGATIVES, ON, PROMPTS, STEPS, assert_same, drawn, sampled
from tiny_pipelines import FAMILIES, enlarge
from tiny_transformers import flux
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    CFGNegativePrompt,
    DynamicNegativeGuidance,
    Guidance,
    NegativePrompting,
    Unguided,
)
from dng_lightning.text_to_image import guided


@pytest.mark.parametrize("name", FAMILIES)
def test_at_scale_0_it_is_the_pipeline_itself(name: str, opened: Any):
    """Bit for bit where the network is called for the same images; in another batch to rounding."""
    pipeline, family = opened[name], FAMILIES[name]
    expected = drawn(pipeline, family, family.off, negative_prompt=None)
    with guided(pipeline, Unguided()):
        assert torch.equal(drawn(pipeline, family, family.off, negative_prompt=None), expected)
    for guidance in (DynamicNegativeGuidance(0, DYNAMIC.posterior), NegativePrompting(0)):
        with guided(pipeline, guidance):
            assert_same(drawn(pipeline, family), expected, 1e-5)
    again = drawn(pipeline, family, family.off, negative_prompt=None)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.own])
def test_with_a_constant_posterior_it_is_the_pipelines_own_guidance(name: str, opened: Any):
    pipeline, family = opened[name], FAMILIES[name]
    expected = drawn(pipeline, family, 3.0)
    assert (expected - drawn(pipeline, family, family.off, negative_prompt=None)).abs().max() > 1e-2
    with guided(pipeline, CFGNegativePrompt(family.own(3.0))):
        assert_same(drawn(pipeline, family), expected)


@pytest.mark.parametrize("guidance", [DYNAMIC, BOTH], ids=["dynamic", "with_prompt"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_draws_what_our_sampler_draws(name: str, guidance: Guidance, opened: Any):
    pipeline, family = opened[name], FAMILIES[name]
    with guided(pipeline, guidance) as hosted:
        found = drawn(pipeline, family)
    expected, seen = sampled(pipeline, family, guidance)
    assert hosted.trajectories.posterior is not None
    assert seen.posterior is not None
    assert (hosted.trajectories.posterior - 0.3).abs().max() > 1e-3  # it moves
    torch.testing.assert_close(hosted.trajectories.posterior, seen.posterior, rtol=0, atol=1e-4)
    assert_same(found, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_negative_prompts_of_its_own(name: str, opened: Any):
    """The same as those of the call, and several of them."""
    pipeline, family = opened[name], FAMILIES[name]
    with guided(pipeline, BOTH) as hosted:
        expected = drawn(pipeline, family, negative_prompt=["blue", "blue"])
    for scale in (family.off, ON):
        with guided(pipeline, BOTH, negative_prompt="blue"):
            assert_same(drawn(pipeline, family, scale, negative_prompt=None), expected)
    with guided(pipeline, BOTH, negative_prompt=["blue", "dark"]) as hosted:
        drawn(pipeline, family, negative_prompt=None)
    assert hosted.trajectories.posterior is not None
    assert hosted.trajectories.posterior.shape == (2, STEPS, 2)
    with guided(pipeline, BOTH, negative_prompt="blue"), pytest.raises(SettingError, match="guided has negative"):
        drawn(pipeline, family)


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_that_cannot_be_guided(name: str, opened: Any):
    pipeline, family = opened[name], FAMILIES[name]
    for settings in ({"scale": family.off}, {"negative_prompt": ["", ""]}, {"negative_prompt": None}):
        with (
            pytest.raises(SettingError, match="needs a negative prompt: call"),
            guided(pipeline, DYNAMIC),
        ):
            drawn(pipeline, family, **{"scale": ON} | settings)
    with (
        pytest.raises(SettingError, match="uses no negative prompt"),
        guided(pipeline, Unguided()),
    ):
        drawn(pipeline, family)
    assert "forward" not in vars(pipeline.transformer)
    assert "encode_prompt" not in vars(pipeline)


@pytest.mark.parametrize("name", FAMILIES)
def test_several_images_a_prompt(name: str, opened: Any):
    pipeline, family = opened[name], FAMILIES[name]
    with guided(pipeline, BOTH):
        expected = drawn(pipeline, family, prompt=PROMPTS[:1] * 2, negative_prompt=NEGATIVES[:1] * 2)
        found = drawn(pipeline, family, prompt=PROMPTS[:1], negative_prompt=NEGATIVES[:1], **{family.count: 2})
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.embeds])
def test_prompts_as_embeddings_without_text_encoders(name: str, opened: Any):
    """And the empty prompt is read while the text encoder is there."""
    pipeline, family = opened[name], FAMILIES[name]
    texts = family.texts(pipeline, PROMPTS, NEGATIVES)
    embeds = {f"{sign}{part}": text for sign, key in (("", "prompt"), ("negative_", "negative"))
              for part, text in zip(family.embeds, texts[key], strict=True)}  # fmt: skip
    embeds |= {"prompt": None, "negative_prompt": None}
    with guided(pipeline, BOTH):
        expected = drawn(pipeline, family)
        assert_same(drawn(pipeline, family, **embeds), expected, 1e-5)
    encoder, pipeline.text_encoder = pipeline.text_encoder, None
    try:
        with guided(pipeline, DYNAMIC):
            drawn(pipeline, family, **embeds)
        with pytest.raises(SettingError, match="reads the empty prompt: give the pipeline its text_encoder"):
            guided(pipeline, BOTH).__enter__()
    finally:
        pipeline.text_encoder = encoder


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline"])
def test_a_low_rank_adaptation(name: str, opened: Any):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra test)")
    pipeline, family = opened[name], FAMILIES[name]
    plain = drawn(pipeline, family, family.off, negative_prompt=None)
    pipeline.transformer.add_adapter(peft.LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False))
    try:
        expected = drawn(pipeline, family, 3.0)
        with guided(pipeline, CFGNegativePrompt(3.0)):
            assert_same(drawn(pipeline, family), expected)
    finally:
        pipeline.transformer.delete_adapters("default")
    assert (expected - plain).abs().max() > 1e-3
    assert_same(drawn(pipeline, family, family.off, negative_prompt=None), plain)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline"])
def test_weights_that_are_moved_for_each_call(name: str, opened: Any):
    """Accelerate takes its hooks away and puts them back at the end of each call of the pipeline."""
    pytest.importorskip("accelerate", reason="accelerate is not installed (extra test)")
    pipeline, family = opened[name], FAMILIES[name]
    with guided(pipeline, BOTH):
        expected = drawn(pipeline, family)
    pipeline.enable_model_cpu_offload(device="cpu")
    try:
        with guided(pipeline, BOTH):
            assert torch.equal(drawn(pipeline, family), expected)
            assert torch.equal(drawn(pipeline, family), expected)
        assert not isinstance(pipeline.transformer.forward, type(BOTH))
    finally:
        pipeline.remove_all_hooks()


@pytest.mark.parametrize("settings", [{"cfg_truncation": 0.5}, {"cfg_normalization": 0.5}], ids=str)
def test_settings_of_z_image_that_cannot_be(settings: dict[str, float], opened: Any):
    pipeline, family = opened["ZImagePipeline"], FAMILIES["ZImagePipeline"]
    with (
        guided(pipeline, BOTH),
        pytest.raises(SettingError, match=f"{next(iter(settings))} .*: (use|call) "),
    ):
        drawn(pipeline, family, **settings)


def test_what_z_image_and_qwen_image_do_to_a_blend_is_undone(opened: Any):
    """Normalized or at another scale, it is the guided prediction alone."""
    for name, settings in (("ZImagePipeline", {"cfg_normalization": True}), ("QwenImagePipeline", {})):
        pipeline, family = opened[name], FAMILIES[name]
        with guided(pipeline, CFGNegativePrompt(3.0)):
            expected = drawn(pipeline, family)
            assert_same(drawn(pipeline, family, 9.0, **settings), expected, 1e-5)


def test_the_two_transformers_of_wan_2_2(opened: Any):
    first, family = opened["WanPipeline"], FAMILIES["WanPipeline"]
    torch.manual_seed(1)
    second = family.build().transformer
    enlarge(second)
    pipeline = type(first)(**first.components | {"transformer_2": second, "boundary_ratio": 0.8})
    pipeline.set_progress_bar_config(disable=True)

    def run(pipeline: Any, x: Tensor, t: Tensor, texts: Any) -> Tensor:
        network = pipeline.transformer if float(t) >= 800 else pipeline.transformer_2
        return network(x, t, texts[0], return_dict=False)[0]

    with guided(pipeline, BOTH) as hosted:
        found = drawn(pipeline, family)
    expected, seen = sampled(pipeline, replace(family, run=run), BOTH)
    assert_same(found, expected)
    assert hosted.trajectories.posterior is not None
    torch.testing.assert_close(hosted.trajectories.posterior, seen.posterior, rtol=0, atol=1e-4)
    with guided(first, BOTH):
        assert (drawn(first, family) - found).abs().max() > 1e-2
    expected = drawn(pipeline, family, family.off, negative_prompt=None)
    with guided(pipeline, Unguided()):
        assert torch.equal(drawn(pipeline, family, family.off, negative_prompt=None), expected)


def test_a_model_distilled_for_guidance(opened: Any):
    torch.manual_seed(0)
    pipeline, family = flux(distilled=True), FAMILIES["FluxPipeline"]
    pipeline.set_progress_bar_config(disable=True)
    with (
        guided(pipeline, DYNAMIC),
        pytest.raises(SettingError, match="with guidance_scale=1, or take a guidance inside"),
    ):
        drawn(pipeline, family)
    with guided(pipeline, CFGNegativePrompt(3.0)):
        found = drawn(pipeline, family, guidance_scale=1.0)
    assert_same(found, drawn(pipeline, family, 3.0, guidance_scale=1.0))
    plain = drawn(pipeline, family, family.off, negative_prompt=None)
    with guided(pipeline, Unguided()):
        assert torch.equal(drawn(pipeline, family, family.off, negative_prompt=None), plain)


def test_a_video_pipeline_that_is_not_known():
    class LTXPipeline:
        pass

    with pytest.raises(SettingError, match=r"^guided needs a .*WanPipeline.*; got a LTXPipeline$"):
        guided(LTXPipeline(), DYNAMIC).__enter__()
