"""Transformers that evaluate the negative prompts and the prompts in one call: SD3, PixArt, HunyuanDiT, Sana."""

from collections.abc import Mapping
from typing import Any

from dng_lightning.text_to_image.layouts.layout import Layout, Texts, TextTokens


def _encode_sd3(pipeline: Any, text: str, settings: Mapping[str, Any]) -> Texts:
    _, tokens, _, pooled = pipeline.encode_prompt("", None, None, negative_prompt=text, **settings)
    return {"encoder_hidden_states": tokens, "pooled_projections": pooled}


def _refuse_sd3(pipeline: Any, arguments: Mapping[str, Any]) -> str | None:
    if arguments.get("skip_layers") is not None:
        return "skip_guidance_layers is another guidance: call the pipeline without it"
    if "ip_adapter_image_embeds" in (arguments.get("joint_attention_kwargs") or {}):
        return "guided does not support image prompts"
    return None


def _encode_masked(pipeline: Any, text: str, settings: Mapping[str, Any]) -> Texts:
    _, _, tokens, mask = pipeline.encode_prompt("", True, negative_prompt=text, **settings)
    return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}


def _encode_hunyuan(pipeline: Any, text: str, settings: Mapping[str, Any]) -> Texts:
    texts: Texts = {}
    for encoder, (length, suffix) in enumerate(((77, ""), (256, "_t5"))):
        of = {"max_sequence_length": length, "text_encoder_index": encoder, "dtype": pipeline.transformer.dtype}
        _, tokens, _, mask = pipeline.encode_prompt("", negative_prompt=text, **of)
        texts |= {f"encoder_hidden_states{suffix}": tokens, f"text_embedding_mask{suffix}": mask}
    return texts


MASKED = TextTokens("apart", mask="encoder_attention_mask")

SD3 = Layout(
    rows=("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"),
    text="encoder_hidden_states",
    encode=_encode_sd3,
    refuse=_refuse_sd3,
    tokens=TextTokens("after", tokenizers=("tokenizer", "tokenizer_3")),
)
PIXART = Layout(
    rows=("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "added_cond_kwargs"),
    text="encoder_hidden_states",
    encode=_encode_masked,
    tokens=MASKED,
)
HUNYUAN_DIT = Layout(
    rows=(
        "hidden_states", "timestep", "encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5",
        "text_embedding_mask_t5", "image_meta_size", "style",
    ),
    text="encoder_hidden_states",
    encode=_encode_hunyuan,
)  # fmt: skip
SANA = Layout(
    rows=("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"),
    text="encoder_hidden_states",
    encode=_encode_masked,
    tokens=MASKED,
)

LAYOUTS = {
    "StableDiffusion3Pipeline": SD3,
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
    "HunyuanDiTPipeline": HUNYUAN_DIT,
    "SanaPipeline": SANA,
}
