"""Stable Diffusion in miniature: random weights, in diffusers' format and of its classes."""

import json
import re
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch

# What makes a scheduler of diffusers' walk our chain: the same levels, the last step to the data, nothing clipped.
OURS = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def encoder(projection: int | None = None) -> Any:
    import transformers

    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, projection_dim=projection or 16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    return kind(config).eval()


def tokenizer() -> Any:
    """Of single letters, 24 of them at most."""
    import transformers

    letters = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    return transformers.CLIPTokenizer(vocabulary, [], model_max_length=24)


def tiny(folder: Path, xl: bool = False, unet: dict[str, Any] | None = None, **scheduler: Any) -> Path:
    """Save a pipeline of images of 16x16 and latents of 8x8.

    Args:
        folder: where.
        xl: Stable Diffusion XL.
        unet: other settings of the U-Net.
        scheduler: other settings of the scheduler.
    """
    import diffusers

    torch.manual_seed(0)
    more = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64,
    } if xl else {}  # fmt: skip
    network = diffusers.UNet2DConditionModel(**{
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 4, "attention_head_dim": 4,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32 if xl else 16,
    } | more | (unet or {}))  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.5,
    )  # fmt: skip
    steps = diffusers.DDIMScheduler(**STABLE | OURS | scheduler)
    parts = {"vae": vae, "text_encoder": encoder(), "tokenizer": tokenizer(), "unet": network, "scheduler": steps}
    if xl:
        parts |= {"text_encoder_2": encoder(16), "tokenizer_2": tokenizer()}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder)
    return folder


def dit_pipeline() -> Any:
    """A class-conditional transformer of latents; its steps are those of our chain."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.5,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, **OURS)
    pipeline = diffusers.DiTPipeline(transformer.eval(), vae.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_dit(folder: Path) -> Path:
    """Save one as `facebook/DiT-XL-2-256` has it, with names of 1,000 classes, as many as its null class says."""
    dit_pipeline().save_pretrained(folder)
    names = {str(label): f"class {label}" for label in range(1000)}
    names |= {"0": "tench, Tinca tinca", "134": "crane", "207": "golden retriever", "517": "crane"}
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))
    return folder


def run_example(code: str, folder: Path) -> dict[str, Any]:
    """Run an example in ``folder``, the working directory; what it reads from the hub is a tiny one that is put there.

    Returns:
        the names that it leaves.
    """
    (name,) = re.findall(r'from_pretrained\("(.+)"\)', code)
    tiny(folder / name, xl="xl" in name)
    known: dict[str, Any] = {}
    exec(compile(code, "example", "exec"), known)
    return known
