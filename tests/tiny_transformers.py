"""Diffusers' transformer pipelines in miniature, with random weights."""

from string import ascii_lowercase
from typing import Any, ClassVar

import torch
from tiny_diffusion import OURS, STABLE, encoder, tokenizer


class LetterTokenizer:
    """Single letters, in place of a sentencepiece or byte-pair file."""

    model_max_length, padding_side = 24, "right"
    added_tokens_encoder: ClassVar[dict[str, int]] = {}
    tokenize = list

    def __call__(self, texts: Any, max_length: int = 8, padding: Any = None, **_: Any) -> Any:
        texts = [texts] if isinstance(texts, str) else texts
        ids = [[2 + ascii_lowercase.find(letter) for letter in text if letter.isalpha()] + [1] for text in texts]
        longest = max(map(len, ids)) if padding in ("longest", True) else max_length
        ids = [row[:longest] for row in ids]
        rows = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        import transformers

        return transformers.BatchEncoding({"input_ids": rows, "attention_mask": mask})

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return messages[0]["content"]

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


def flux(distilled: bool = False) -> Any:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=distilled,
    )  # fmt: skip
    scheduler = flow(use_dynamic_shifting=True)
    return diffusers.FluxPipeline(scheduler, vae(), encoder(), tokenizer(), t5(), LetterTokenizer(), transformer)


class ChatTokenizer(LetterTokenizer):
    """Of the last message of each conversation."""

    def apply_chat_template(self, messages: list[Any], max_length: int = 8, **_: Any) -> Any:
        return self([conversation[-1]["content"][0]["text"] for conversation in messages], max_length)


def flux2(kind: str = "Flux2Pipeline") -> Any:
    """Flux.2, with a small Qwen3 in the place of its text encoder, or Flux.2 Klein."""
    import diffusers

    is_klein = kind == "Flux2KleinPipeline"
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=not is_klein,
    )  # fmt: skip
    small = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    scheduler = flow(use_dynamic_shifting=True)
    tokens = LetterTokenizer() if is_klein else ChatTokenizer()
    return getattr(diffusers, kind)(scheduler, small, qwen(2), tokens, transformer)


def qwen(layers: int) -> Any:
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return transformers.Qwen3Model(config).eval()


def qwen_image() -> Any:
    import diffusers

    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    small = diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipeline = diffusers.QwenImagePipeline(
        flow(use_dynamic_shifting=True), small, qwen(1), LetterTokenizer(), transformer
    )
    pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx = "{}", 0
    return pipeline


def z_image() -> Any:
    import diffusers

    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[64, 32, 32],
    )  # fmt: skip
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    return diffusers.ZImagePipeline(flow(use_dynamic_shifting=True), vae(), qwen(2), LetterTokenizer(), transformer)


def wan() -> Any:
    import diffusers

    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32, ffn_dim=32,
        num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    small = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return diffusers.WanPipeline(LetterTokenizer(), t5(), small, flow(shift=3.0), transformer)


def t5_tokenizer() -> Any:
    """Of single letters, that can be saved."""
    import transformers

    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -1.0),
        *((letter, -2.0) for letter in ascii_lowercase),
    ]
    return transformers.T5Tokenizer(vocab=letters, extra_ids=0, model_max_length=24)


def qwen_tokenizer() -> Any:
    """Of single letters, that can be saved."""
    import transformers

    letters = {letter: number for number, letter in enumerate(["<|endoftext|>", "Ġ", *ascii_lowercase])}
    return transformers.Qwen2Tokenizer(vocab=letters, merges=[])
