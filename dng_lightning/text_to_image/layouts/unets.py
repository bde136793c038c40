"""Stable Diffusion 1.x, 2.x and SDXL: U-Nets that attend to the text."""

from collections.abc import Mapping
from typing import Any

from dng_lightning.text_to_image.layouts.layout import Layout, Texts, TextTokens

TOKENS = TextTokens("apart")
IMAGE_PROMPTS = "guided supports neither models conditioned on a guidance scale nor image prompts"


def _encode(pipeline: Any, text: str, settings: Mapping[str, Any]) -> Texts:
    return _forms(pipeline, text or None, settings)[1]


def _empties(pipeline: Any, settings: Mapping[str, Any]) -> list[Texts]:
    """SDXL uses zeros without a negative prompt, and the empty prompt for an empty one."""
    return _forms(pipeline, None, settings)[::-1]


def _forms(pipeline: Any, negative: str | None, settings: Mapping[str, Any]) -> list[Texts]:
    where = {"device": pipeline._execution_device, "num_images_per_prompt": 1}
    encoded = pipeline.encode_prompt("", negative_prompt=negative, do_classifier_free_guidance=True, **where)
    texts = [{"encoder_hidden_states": tokens} for tokens in encoded[:2]]
    for text, pooled in zip(texts, encoded[2:], strict=False):
        text["added_cond_kwargs"] = {"text_embeds": pooled}
    return texts


def _refuse(pipeline: Any, arguments: Mapping[str, Any]) -> str | None:
    image = "image_embeds" in (arguments.get("added_cond_kwargs") or {})
    return IMAGE_PROMPTS if image or arguments.get("timestep_cond") is not None else None


U_NET = Layout(
    rows=("sample", "timestep", "encoder_hidden_states", "added_cond_kwargs"),
    text="encoder_hidden_states",
    encode=_encode,
    networks=("unet",),
    empties=_empties,
    refuse=_refuse,
    tokens=TOKENS,
)

LAYOUTS = {"StableDiffusionPipeline": U_NET, "StableDiffusionXLPipeline": U_NET}
