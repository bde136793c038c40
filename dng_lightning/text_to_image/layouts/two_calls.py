"""Transformers that evaluate the prompts and then the negative prompts: Flux, Qwen-Image, Wan."""

from collections.abc import Mapping
from typing import Any

from dng_lightning.text_to_image.layouts.layout import Layout, Texts, TextTokens

IMAGE_PROMPTS = "guided does not support image prompts"
TRUE_CFG = "negative_prompt and a true_cfg_scale above 1"


def _encode_flux(pipeline: Any, text: str, settings: Mapping[str, Any]) -> Texts:
    tokens, pooled, _ = pipeline.encode_prompt(text, **settings)
    return {"encoder_hidden_states": tokens, "pooled_projections": pooled}


def _refuse_flux(pipeline: Any, arguments: Mapping[str, Any]) -> str | None:
    adapter = "ip_adapter_image_embeds" in (arguments.get("joint_attention_kwargs") or {})
    return IMAGE_PROMPTS if adapter else None


def _encode_qwen(pipeline: Any, text: str, settings: Mapping[str, Any]) -> Texts:
    tokens, mask = pipeline.encode_prompt(text, **settings)
    return {"encoder_hidden_states": tokens, "encoder_hidden_states_mask": mask}


def _encode_wan(pipeline: Any, text: str, settings: Mapping[str, Any]) -> Texts:
    _, tokens = pipeline.encode_prompt("", negative_prompt=text, **settings)
    return {"encoder_hidden_states": tokens.to(pipeline.transformer.dtype)}


FLUX = Layout(
    rows=("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections", "guidance"),
    text="encoder_hidden_states",
    encode=_encode_flux,
    together=False,
    switch=TRUE_CFG,
    refuse=_refuse_flux,
    tokens=TextTokens("before", positions="txt_ids", tokenizers=("tokenizer_2",)),
)
QWEN_IMAGE = Layout(
    rows=("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_mask", "guidance"),
    text="encoder_hidden_states",
    encode=_encode_qwen,
    together=False,
    switch=TRUE_CFG,
)
WAN = Layout(
    rows=("hidden_states", "timestep", "encoder_hidden_states"),
    text="encoder_hidden_states",
    encode=_encode_wan,
    networks=("transformer", "transformer_2"),
    together=False,
    tokens=TextTokens("apart"),
)

LAYOUTS = {
    "FluxPipeline": FLUX,
    "QwenImagePipeline": QWEN_IMAGE,
    "WanPipeline": WAN,
}
