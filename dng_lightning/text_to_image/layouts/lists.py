"""Z-Image: lists of images and texts, the prompts first, and the negative velocity as output."""

from collections.abc import Mapping
from typing import Any

from dng_lightning.text_to_image.layouts.layout import Layout, Texts


def _encode(pipeline: Any, text: str, settings: Mapping[str, Any]) -> Texts:
    tokens, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False, **settings)
    return {"cap_feats": tokens}


def _refuse(pipeline: Any, arguments: Mapping[str, Any]) -> str | None:
    if pipeline._cfg_truncation is not None and float(pipeline._cfg_truncation) < 1:
        return "cfg_truncation leaves the last steps without a negative prompt: use LimitedInterval"
    if 0 < float(pipeline._cfg_normalization or 0) < 1:
        return "a cfg_normalization below 1 shrinks every guided prediction: call the pipeline without it"
    return None


Z_IMAGE = Layout(
    rows=("x", "t", "cap_feats"),
    text="cap_feats",
    encode=_encode,
    negatives_first=False,
    sign=-1.0,
    switch="guidance_scale above 0",
    refuse=_refuse,
)

LAYOUTS = {"ZImagePipeline": Z_IMAGE}
