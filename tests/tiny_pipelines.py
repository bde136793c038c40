"""What the tests know of each family of transformer pipelines."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_transformers import (
    LetterTokenizer,
    flux,
    hunyuan_dit,
    pixart,
    qwen_image,
    qwen_tokenizer,
    sana,
    stable_diffusion_3,
    t5,
    t5_tokenizer,
    wan,
    z_image,
)
from torch import Tensor

Texts = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A pipeline class, and by hand what its calls of the network are.

    Attributes:
        build: makes a pipeline.
        texts: what ``encode_prompt`` makes of texts, as (prompts, negative prompts, no negative prompt).
        run: the network's output for latents, a timestep of the scheduler and texts.
        shape: of an image's latents.
        call: further arguments of the pipeline.
        scale: the argument that sets the weight of its classifier-free guidance.
        off: its value without classifier-free guidance.
        generator: the scheduler gets the pipeline's generators.
        count: the argument that sets the number of images a prompt.
        embeds: the arguments that take its texts encoded; none where they are nested.
        own: weight w of its own classifier-free guidance, from the argument; None where it rescales the blend.
    """

    build: Callable[[], Any]
    texts: Callable[[Any, list[str], list[str]], Texts]
    run: Callable[[Any, Tensor, Tensor, Texts], Tensor]
    shape: tuple[int, ...] = (4, 8, 8)
    call: dict[str, Any] = field(default_factory=lambda: {"height": 16, "width": 16})
    scale: str = "guidance_scale"
    off: float = 1.0
    generator: bool = False
    count: str = "num_images_per_prompt"
    embeds: tuple[str, ...] = ("prompt_embeds", "prompt_attention_mask")
    own: Callable[[float], float] | None = field(default=lambda scale: scale)


def texts_sd3(pipeline: Any, prompts: list[str], negatives: list[str]) -> Texts:
    tokens, away, pooled, pooled_away = pipeline.encode_prompt(prompts, None, None, negative_prompt=negatives)
    return {"prompt": (tokens, pooled), "negative": (away, pooled_away)}


def run_sd3(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    tokens, pooled = texts
    return pipeline.transformer(x, tokens, pooled, t, return_dict=False)[0]


def texts_masked(pipeline: Any, prompts: list[str], negatives: list[str]) -> Texts:
    tokens, mask, away, mask_away = pipeline.encode_prompt(prompts, True, negatives)
    return {"prompt": (tokens, mask), "negative": (away, mask_away)}


def run_pixart(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    more = {"resolution": None, "aspect_ratio": None}
    output = pipeline.transformer(
        x, texts[0], t, encoder_attention_mask=texts[1], added_cond_kwargs=more, return_dict=False
    )
    return output[0][:, :4]


def texts_hunyuan(pipeline: Any, prompts: list[str], negatives: list[str]) -> Texts:
    found = [
        pipeline.encode_prompt(prompts, negative_prompt=negatives, max_sequence_length=length, text_encoder_index=i)
        for i, length in enumerate((77, 256))
    ]
    return {name: [(texts[i], texts[i + 2]) for texts in found] for i, name in enumerate(("prompt", "negative"))}


def run_hunyuan(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    crops = get_resize_crop_region_for_grid((8, 8), 32)
    rotary = get_2d_rotary_pos_embed(8, crops, (8, 8), output_type="pt")
    (tokens, mask), (tokens_t5, mask_t5) = texts
    size = torch.tensor([[1024.0, 1024, 128, 128, 0, 0]]).repeat(len(x), 1)
    style = torch.zeros(len(x), dtype=torch.long)
    output = pipeline.transformer(
        x, t.to(x.dtype), tokens, mask, tokens_t5, mask_t5, size, style, rotary, return_dict=False
    )
    return output[0][:, :4]


def run_sana(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    return pipeline.transformer(x, texts[0], t * 0.5, encoder_attention_mask=texts[1], return_dict=False)[0]


def texts_flux(pipeline: Any, prompts: list[str], negatives: list[str]) -> Texts:
    of = {"prompt": prompts, "negative": negatives}
    return {key: pipeline.encode_prompt(texts, max_sequence_length=8)[:2] for key, texts in of.items()}


def run_flux(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    ids = pipeline._prepare_latent_image_ids(1, 4, 4, x.device, x.dtype)
    return pipeline.transformer(
        x, texts[0], texts[1], t / 1000, ids, torch.zeros(texts[0].shape[1], 3), return_dict=False
    )[0]


def texts_qwen(pipeline: Any, prompts: list[str], negatives: list[str]) -> Texts:
    of = {"prompt": prompts, "negative": negatives}
    return {key: pipeline.encode_prompt(list(texts)) for key, texts in of.items()}


def run_qwen(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    return pipeline.transformer(x, texts[0], texts[1], t / 1000, [[(1, 4, 4)]], return_dict=False)[0]


def texts_z_image(pipeline: Any, prompts: list[str], negatives: list[str]) -> Texts:
    tokens, away = pipeline.encode_prompt(list(prompts), None, True, list(negatives))
    return {"prompt": (tokens,), "negative": (away,)}


def run_z_image(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    output = pipeline.transformer([x[0][:, None]], (1000 - t) / 1000, texts[0], return_dict=False)[0]
    return -output[0][None, :, 0]


def texts_wan(pipeline: Any, prompts: list[str], negatives: list[str]) -> Texts:
    tokens, away = pipeline.encode_prompt(prompts, negatives, max_sequence_length=8)
    return {"prompt": (tokens,), "negative": (away,)}


def run_wan(pipeline: Any, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
    return pipeline.transformer(x, t, texts[0], return_dict=False)[0]


MASKED = {"height": 16, "width": 16, "use_resolution_binning": False, "clean_caption": False}

FAMILIES = {
    "StableDiffusion3Pipeline": Family(
        stable_diffusion_3, texts_sd3, run_sd3, embeds=("prompt_embeds", "pooled_prompt_embeds")
    ),
    "PixArtAlphaPipeline": Family(
        lambda: pixart("PixArtAlphaPipeline"), texts_masked, run_pixart, call=MASKED, generator=True
    ),
    "PixArtSigmaPipeline": Family(
        lambda: pixart("PixArtSigmaPipeline"), texts_masked, run_pixart, call=MASKED, generator=True
    ),
    "HunyuanDiTPipeline": Family(
        hunyuan_dit, texts_hunyuan, run_hunyuan, (4, 16, 16),
        {"height": 128, "width": 128, "use_resolution_binning": False}, generator=True, embeds=(),
    ),
    "SanaPipeline": Family(
        sana, texts_masked, run_sana, (4, 16, 16),
        MASKED | {"height": 32, "width": 32, "complex_human_instruction": None}, generator=True,
    ),
    "FluxPipeline": Family(
        flux, texts_flux, run_flux, (16, 16), {"height": 16, "width": 16, "max_sequence_length": 8},
        scale="true_cfg_scale", embeds=("prompt_embeds", "pooled_prompt_embeds"),
    ),
    "QwenImagePipeline": Family(
        qwen_image, texts_qwen, run_qwen, (16, 16), {"height": 32, "width": 32}, scale="true_cfg_scale",
        embeds=("prompt_embeds", "prompt_embeds_mask"), own=None,
    ),
    "ZImagePipeline": Family(
        z_image, texts_z_image, run_z_image, off=0.0, embeds=("prompt_embeds",), own=lambda scale: 1 + scale
    ),
    "WanPipeline": Family(
        wan, texts_wan, run_wan, (4, 2, 2, 2),
        {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 8}, count="num_videos_per_prompt",
        embeds=("prompt_embeds",),
    ),
}  # fmt: skip


def save(name: str, folder: Path, distilled: bool = False) -> Path:
    """Save a pipeline with random weights, tokenizers of letters, and the scheduler of the published folders."""
    import diffusers

    torch.manual_seed(0)
    pipeline = flux(distilled) if name == "FluxPipeline" else FAMILIES[name].build()
    for part, tokens in pipeline.components.items():
        if isinstance(tokens, LetterTokenizer):
            pipeline.register_modules(**{part: qwen_tokenizer() if "Qwen" in name else t5_tokenizer()})
    if name == "StableDiffusion3Pipeline":  # a folder has all parts
        pipeline.register_modules(text_encoder_3=t5(), tokenizer_3=t5_tokenizer())
    if "PixArt" in name:
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    else:
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            enlarge(part)
    pipeline.save_pretrained(folder)
    return folder


def enlarge(module: torch.nn.Module) -> None:
    """Random weights say little of the text; these are large enough for a posterior that moves."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim < 2:
                weight.add_(0.1 * torch.randn_like(weight))
            elif "proj_out" in name or "linear" in name or "context" in name:
                weight.add_(0.2 * torch.randn_like(weight))
