"""Diffusers' transformer pipelines in miniature: random weights, of its classes, and how each calls its network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from string import ascii_lowercase
from types import SimpleNamespace
from typing import Any

import torch
from tiny_diffusion import OURS, STABLE, encoder, tokenizer
from torch import Tensor

Texts = dict[str, Any]


class LetterTokenizer:
    """Single letters, in place of a sentencepiece or byte-pair file."""

    model_max_length, padding_side = 24, "right"

    def __call__(self, texts: Any, max_length: int = 8, padding: Any = None, **_: Any) -> SimpleNamespace:
        texts = [texts] if isinstance(texts, str) else texts
        ids = [[2 + ascii_lowercase.find(letter) for letter in text if letter.isalpha()] + [1] for text in texts]
        longest = max(map(len, ids)) if padding in ("longest", True) else max_length
        ids = [row[:longest] for row in ids]
        rows = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        return SimpleNamespace(input_ids=rows, attention_mask=mask)

    def batch_decode(self, ids: Any) -> list[str]:
        return ["" for _ in ids]


def t5() -> Any:
    import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).eval()


def vae(blocks: int = 2, channels: int = 4) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks, latent_channels=channels, norm_num_groups=4, sample_size=16,
        scaling_factor=0.5, shift_factor=0.0,
    )  # fmt: skip


def ddpm() -> Any:
    import diffusers

    settings = {name: value for name, value in (STABLE | OURS).items() if name != "set_alpha_to_one"}
    return diffusers.DDPMScheduler(**settings)


def flow(**settings: Any) -> Any:
    from dng_lightning.text_to_image import FlowMatchAncestralScheduler

    return FlowMatchAncestralScheduler(**settings)


def stable_diffusion_3() -> Any:
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer, flow(shift=3.0), vae(), encoder(16), tokenizer(), encoder(16), tokenizer(), None, None
    )


def pixart(kind: str) -> Any:
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, caption_channels=32, sample_size=8, patch_size=2, use_additional_conditions=False,
    )  # fmt: skip
    return getattr(diffusers, kind)(LetterTokenizer(), t5(), vae(), transformer, ddpm())


def hunyuan_dit() -> Any:
    import diffusers
    import transformers

    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24,
        activation_fn="gelu-approximate",
    )  # fmt: skip
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).eval()
    return diffusers.HunyuanDiTPipeline(
        vae(4), bert, LetterTokenizer(), transformer, ddpm(), None, None, False, t5(), LetterTokenizer()
    )


def sana() -> Any:
    import diffusers
    import transformers

    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=16, timestep_scale=0.5,
    )  # fmt: skip
    gemma = transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    ).eval()  # fmt: skip
    small = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.5,
    )  # fmt: skip
    return diffusers.SanaPipeline(LetterTokenizer(), gemma, small, transformer, flow(shift=3.0))


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
}  # fmt: skip
