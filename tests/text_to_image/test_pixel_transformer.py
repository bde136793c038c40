"""PRX's classes with random weights: our sampler is diffusers' own where the two do the same."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import encoder, tokenizer
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AttentionSubtraction,
    ClassifierFreeGuidance,
    NormalizedAttention,
    OrthogonalAttention,
    PositiveAndNegative,
    Unguided,
    ValueSignFlip,
)
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.guidance.dynamic_negative import DynamicNegativeGuidance
from dng_lightning.kernel import NoiseLevel
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.text_to_image import TextPredictor, TextToImageModel, TextToImageSampler

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")
pytest.importorskip("ftfy", reason="ftfy is not installed (extra portraits)")

import diffusers
from diffusers.models.transformers.transformer_prx import PRXAttnProcessor2_0

SEEDS = [3, 14]


def tiny_prx(folder: Path, **settings: Any) -> Path:
    """Save a pipeline of images of 16x16."""
    torch.manual_seed(0)
    network = diffusers.PRXTransformer2DModel(
        in_channels=3, patch_size=4, context_in_dim=16, hidden_size=16, num_heads=1, axes_dim=[8, 8], depth=2,
    )  # fmt: skip
    for block in network.blocks:  # which start as the identity
        torch.nn.init.normal_(block.modulation.lin.weight, std=0.1)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=10)
    given = {"default_sample_size": 16, "prompt_max_tokens": 24, "noise_scale": 1.0} | settings
    diffusers.PRXPixelPipeline(network, scheduler, encoder(), tokenizer(), **given).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prx(tmp_path_factory.mktemp("prx"))


def ours(model: TextToImageModel, prompt: str) -> Tensor:
    predictor = TextPredictor(model, model.encode([prompt]), torch.zeros(2, dtype=torch.long))
    noise = ImageNoise(SEEDS, model.latent_shape())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of eta = 0
        return sample(predictor, ClassifierFreeGuidance(4.0), model.schedule, noise, Sampler(10, eta=0.0))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_flow_is_diffusers_own(scale: float, tmp_path: Path):
    model = TextToImageModel.load(str(tiny_prx(tmp_path, noise_scale=scale)))
    pipeline = diffusers.PRXPixelPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    settings = {"num_inference_steps": 10, "guidance_scale": 4.0, "use_resolution_binning": False}
    # with classifier-free guidance theirs takes one image at a time
    each = [pipeline("a red one", latents=scale * x[None], output_type="pt", **settings).images for x in start]
    theirs = torch.cat(each)
    found = ours(model, "a red one")
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    assert (ours(model, "a blue two") - found).abs().max() > 1e-3  # the prompt counts


def test_padding_of_the_texts_has_no_effect(folder: Path):
    model = TextToImageModel.load(str(folder))
    prompts = model.encode(["ab"])
    assert prompts.texts["attention_mask"].sum(1).tolist() == [4, 2]  # begin and end besides
    x, level = torch.randn(1, 3, 16, 16), NoiseLevel(0.5, 0.5, 5.0)
    before = model(x, level, prompts.take([0]))
    prompts.texts["encoder_hidden_states"][:, 4:] = 7.0
    assert torch.equal(model(x, level, prompts.take([0])), before)


def test_guided_from_the_sampler(folder: Path):
    guidance = PositiveAndNegative(DynamicNegativeGuidance(posterior=TrackedPosterior(prior=0.1)), 2.0, True)
    sampler = TextToImageSampler(str(folder), "a red one", "blue", guidance, steps=5)
    assert sampler.image_shape == sampler.chain_shape == (3, 16, 16)
    assert TextToImageSampler(str(folder), "a", "b", guidance, steps=5, height=8, width=24).image_shape == (3, 8, 24)


class TwoTexts(PRXAttnProcessor2_0):
    """PRX's own attention to the first 24 tokens of a text, pushed away from that to the next 24."""

    def __init__(self, guidance: AttentionGuidance) -> None:
        super().__init__()
        self.guidance = guidance

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **given: Any) -> Tensor:
        mask, rotary = given["attention_mask"], given["image_rotary_emb"]
        project, attn.to_out = attn.to_out, torch.nn.ModuleList([torch.nn.Identity()])
        texts = zip(encoder_hidden_states.split(24, 1), mask.split(24, 1), strict=True)
        own = super().__call__
        plus, minus = (own(attn, hidden_states, text, part, rotary) for text, part in texts)
        attn.to_out = project
        if isinstance(self.guidance, AttentionSubtraction):
            return project[0](plus - self.guidance.scale * minus)
        if isinstance(self.guidance, OrthogonalAttention):
            along = (minus * plus).sum(-1, keepdim=True) / plus.square().sum(-1, keepdim=True) * plus
            return project[0](plus - self.guidance.scale * (minus - along))
        pushed = plus + 2.0 * (plus - minus)
        return project[0](0.5 * pushed + 0.5 * plus)


@pytest.mark.parametrize(
    "guidance",
    [
        NormalizedAttention(Unguided(), 3.0, tau=1e6, alpha=0.5),
        OrthogonalAttention(Unguided(), 2.0),
        AttentionSubtraction(Unguided(), 0.4),
    ],
    ids=["NAG", "ONG", "NASA"],
)
def test_negatives_inside_the_attention(guidance: AttentionGuidance, folder: Path):
    model = TextToImageModel.load(str(folder))
    prompts = model.encode(["a red one"], ["blue"])
    predictor = TextPredictor(model, prompts, torch.zeros(2, dtype=torch.long))
    x, level = torch.randn(2, 3, 16, 16), NoiseLevel(0.5, 0.5, 5.0)
    found = predictor.predict(x, level, guidance.needs()).denoised
    both = {
        name: torch.cat([rows[:1], rows[1:2]], 1).expand(2, *[-1] * (rows.ndim - 1))
        for name, rows in prompts.texts.items()
    }
    plain = model(x, level, prompts.take([0, 0]))
    for block in model.denoiser.blocks:
        block.attention.set_processor(TwoTexts(guidance))
    expected = model(x, level, both)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - plain).abs().max() > 1e-3


def test_negatives_inside_the_attention_at_scale_0(folder: Path):
    sampler = TextToImageSampler(str(folder), "a red one", "blue", Unguided(), steps=3)
    expected = sampler.draw(SEEDS).images
    for guidance in (NormalizedAttention(Unguided(), 1.0), ValueSignFlip(Unguided(), 0.0)):
        assert torch.equal(sampler_images(folder, guidance), expected)
    strong = ValueSignFlip(ClassifierFreeGuidance(2.0), 2.0)
    assert not torch.equal(sampler_images(folder, strong), sampler_images(folder, strong.guidance))


def sampler_images(folder: Path, guidance: Any) -> Tensor:
    return TextToImageSampler(str(folder), "a red one", "blue", guidance, steps=3).draw(SEEDS).images


def test_what_is_not_supported_is_one_line(folder: Path, tmp_path: Path):
    model = TextToImageModel.load(str(folder))
    with pytest.raises(SettingError, match="height must be a multiple of 4 pixels; got 6"):
        model.latent_shape(6)
    other = diffusers.PRXPixelPipeline.from_pretrained(folder)
    other.scheduler = diffusers.DDPMScheduler()
    other.save_pretrained(tmp_path)
    with pytest.raises(SettingError, match="its DDPMScheduler is not FlowMatchEulerDiscreteScheduler"):
        TextToImageModel.load(str(tmp_path))
