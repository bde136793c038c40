"""What each form makes of prompts: diffusers' own safe pipeline, and the formulas on the network's predictions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dng_lightning.guidance import (
    CFGNegativePrompt,
    ClassifierFreeGuidance,
    ComposableNot,
    Guidance,
    PerpNeg,
    SafeLatentDiffusion,
    SignedNegative,
)
from dng_lightning.parametrization import output_of
from dng_lightning.sampling import ImageNoise
from dng_lightning.storage import resources
from dng_lightning.text_to_image import TextToImageSampler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

PROMPT, NEGATIVE = "a red seven", "blue"
SEEDS = [3, 14]
FORMS = {
    form.__name__: form for form in (PerpNeg, ComposableNot, SignedNegative, CFGNegativePrompt, SafeLatentDiffusion)
}


def overlaid(name: str) -> Any:
    """The guidance of an overlay."""
    given = yaml.safe_load(resources.config(name).read_text())["model"]["init_args"]["guidance"]
    return FORMS[given["class_path"]](**given["init_args"])


# --- Safe Latent Diffusion ---


@pytest.mark.parametrize("preset", ["weak", "medium", "strong", "max"])
def test_safe_latent_diffusion_is_diffusers_own(preset: str, folder: Path):
    safe = getattr(diffusers, "StableDiffusionPipelineSafe", None)
    if safe is None:
        pytest.skip("diffusers has its deprecated safe pipeline no more")
    guidance = overlaid(f"sld_{preset}")
    guidance = replace(guidance, warmup=min(guidance.warmup, 3))  # of ten steps
    module = TextToImageSampler(str(folder), PROMPT, NEGATIVE, guidance, steps=10, eta=0.0)
    pipeline = safe.from_pretrained(folder, safety_checker=None, feature_extractor=None)
    pipeline.safety_concept = NEGATIVE
    pipeline.set_progress_bar_config(disable=True)
    start = ImageNoise(SEEDS, module.chain_shape)()
    theirs = pipeline(
        [PROMPT] * 2,
        num_inference_steps=10,
        latents=float(module.schedule.sigma[-1]) * start,
        output_type="np",
        sld_guidance_scale=guidance.mask_scale,
        sld_warmup_steps=guidance.warmup,
        sld_threshold=guidance.threshold,
        sld_momentum_scale=guidance.momentum_scale,
        sld_mom_beta=guidance.momentum_decay,
    ).images
    found, plain = (module.draw(SEEDS, method).images / 2 + 0.5 for method in (guidance, ClassifierFreeGuidance(7.5)))
    expected = torch.tensor(theirs).permute(0, 3, 1, 2)
    least = float((expected - plain).abs().max())
    assert least > 5e-5  # "weak" does little in the last steps
    torch.testing.assert_close(found.clamp(0, 1), expected, rtol=0, atol=min(1e-5, least / 20))


# --- the forms of negative prompting ---


def by_hand(form: Guidance, null: Tensor, wanted: Tensor, negatives: list[Tensor]) -> Tensor:
    w = form.scale  # type: ignore[attr-defined]  # they all have one
    if isinstance(form, CFGNegativePrompt):
        return wanted - (w - 1) * sum(negative - wanted for negative in negatives)
    if isinstance(form, ComposableNot):
        return null + w * (wanted - null - sum(negative - null for negative in negatives))
    eps = null + form.cfg_scale * (wanted - null)  # type: ignore[attr-defined]
    for negative in negatives:
        push = negative - null
        if isinstance(form, PerpNeg):
            toward = wanted - null
            share = (push * toward).sum((1, 2, 3)) / (toward * toward).sum((1, 2, 3))
            push = push - share.view(-1, 1, 1, 1) * toward
        eps = eps - w * push
    return eps


@pytest.mark.parametrize("negatives", [[NEGATIVE], [NEGATIVE, "green"]], ids=["one", "two"])
@pytest.mark.parametrize("name", ["perp_neg", "composable_not", "signed_negative", "cfg_negative_prompt"])
def test_each_overlay_is_its_formula_of_the_prompts(name: str, negatives: list[str], folder: Path):
    form = overlaid(f"sd_{name}")
    module = TextToImageSampler(str(folder), PROMPT, negatives, form, steps=1, eta=0.0)
    x = float(module.schedule.sigma[-1]) * ImageNoise(SEEDS, module.chain_shape)()
    with torch.no_grad():
        prompts, level = module.prompts, module.schedule.level(1000)
        each = [module.model(x, level, prompts.take([i, i])) for i in range(prompts.null + 1)]
        wanted, *away, null = (output_of(denoised, x, level, "eps") for denoised in each)
        eps = by_hand(form, null, wanted, away)
        expected = module.decode((x - level.sigma * eps) / level.alpha)
    torch.testing.assert_close(module.draw(SEEDS).images, expected, rtol=0, atol=1e-4)
