"""How diffusers' pipelines call their networks: one layout for each pipeline class."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dng_lightning.text_to_image.attention import ForbiddenTexts, Place

Texts = dict[str, Any]
"""The arguments of a network call that depend on the text, for one text."""

ADDED = "added_cond_kwargs."  # the arguments in this dictionary of a network have names with this prefix
ENCODER_SETTINGS = ("clean_caption", "lora_scale", "max_sequence_length", "text_encoder_out_layers")


@dataclass(frozen=True)
class Layout:
    """How a pipeline calls its network.

    Attributes:
        rows: arguments of the network's ``forward`` with one row per image; first the latents, the timestep, the text.
        encoded: arguments of the network that ``encode_prompt`` returns, in its order; None for a result that the
            network does not take.
        encoders: settings of each call of ``encode_prompt``, with the ending of the arguments that it returns.
        networks: names of the pipeline's denoising networks.
        together: whether one call evaluates negative prompts and prompts; otherwise there is a call for the prompts
            and then one for the negative prompts.
        negatives_first: whether the negative prompts come first in a common call.
        sign: factor from the network's output to the prediction of the scheduler.
        switch: arguments of the pipeline's call with which it evaluates negative prompts, for messages.
        place: where the tokens of the text are in an attention; None where it cannot be edited.
        tokenizers: of the pipeline, in the order of the tokens; all but the last give as many as the first reads.
    """

    rows: tuple[str, ...]
    encoded: tuple[str | None, ...]
    encoders: tuple[tuple[str, Mapping[str, Any]], ...] = (("", {}),)
    networks: tuple[str, ...] = ("transformer",)
    together: bool = True
    negatives_first: bool = True
    sign: float = 1.0
    switch: str = "guidance_scale above 1"
    place: Place | None = None
    tokenizers: tuple[str, ...] = ("tokenizer",)

    @property
    def latents(self) -> str:
        """The argument with the latents."""
        return self.rows[0]

    @property
    def text(self) -> str:
        """The argument with the text."""
        return self.rows[2]

    @property
    def mask(self) -> str | None:
        """The argument that hides the padding of a text, (B, L); None where the network sees it."""
        return next((name for name in self.rows if name in (MASK, PRX_MASK)), None)

    def encode(self, pipeline: Any, encoder: Callable[..., Any], text: str, settings: Mapping[str, Any]) -> Texts:
        """Encode a text like the pipeline.

        Args:
            pipeline: pipeline of this layout.
            encoder: its ``encode_prompt``.
            text: the text.
            settings: arguments of the pipeline's own call of ``encode_prompt``.
        """
        known, texts = inspect.signature(encoder).parameters, Texts()
        usual = {"prompt_2": None, "prompt_3": None, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        usual |= {"device": pipeline._execution_device, "dtype": getattr(pipeline, self.networks[0]).dtype}
        usual |= {name: settings[name] for name in ENCODER_SETTINGS if name in settings}
        for ending, own in self.encoders:
            given = {name: value for name, value in {**usual, **own}.items() if name in known}
            results = encoder(text, **given)
            texts |= {name + ending: value for name, value in zip(self.encoded, results, strict=False) if name}
        return texts

    def empties(self, pipeline: Any, empty: Texts) -> list[Texts]:
        """The texts that count as no negative prompt: zeros, the unconditional text of SDXL, and the ``empty`` one."""
        if not pipeline.config.get("force_zeros_for_empty_prompt"):
            return [empty]
        return [{name: torch.zeros_like(value) for name, value in empty.items()}, empty]

    def forbidden(self, pipeline: Any, negatives: Sequence[str], encoded: Sequence[Texts]) -> ForbiddenTexts:
        """The negative prompts for the attention of the network; ``encoded`` are the same."""
        rows = [text[self.text][0] for text in encoded]
        paddings = [self._padding(pipeline, text, len(own)) for text, own in zip(negatives, rows, strict=True)]
        masks = [text[self.mask][0] for text in encoded] if self.mask else []
        return ForbiddenTexts(rows, paddings, self.place or "apart", masks)

    def _padding(self, pipeline: Any, text: str, length: int) -> Tensor | None:
        """Which of the ``length`` tokens of a text are padding, bool (L,); None where a mask says so."""
        if self.mask is not None:
            return None
        most, parts = pipeline.tokenizer.model_max_length, []
        for name in self.tokenizers:
            part = length if name == self.tokenizers[-1] else min(most, length)
            length -= part
            tokenizer = getattr(pipeline, name, None)
            given = tokenizer(text, max_length=part, truncation=True).attention_mask if tokenizer else [0]
            parts.append(torch.arange(part) >= torch.as_tensor(given).sum())
        return torch.cat(parts)


def refusal(pipeline: Any, arguments: Mapping[str, Any]) -> str | None:
    """Why a network call of a pipeline cannot be guided, in one line; None if it can."""
    adapters = arguments.get("joint_attention_kwargs") or {}
    if "ip_adapter_image_embeds" in adapters or f"{ADDED}image_embeds" in arguments:
        return "guided does not support image prompts"
    if (ids := arguments.get("img_ids")) is not None and bool(ids[..., 0].any()):  # tokens of other images
        return "guided does not support image prompts"
    if arguments.get("timestep_cond") is not None:
        return "guided does not support models conditioned on a guidance scale"
    if arguments.get("skip_layers") is not None:
        return "skip_guidance_layers is another guidance: call the pipeline without it"
    truncation, normalization = (getattr(pipeline, f"_cfg_{name}", None) for name in ("truncation", "normalization"))
    if truncation is not None and truncation < 1:
        return "cfg_truncation leaves the last steps without a negative prompt: use LimitedInterval"
    if 0 < float(normalization or 0) < 1:
        return "a cfg_normalization below 1 shrinks every guided prediction: call the pipeline without it"
    return None


LATENTS, TEXT, MASK, POOLED = "hidden_states", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"
PRX_MASK = "attention_mask"
STATE = (LATENTS, "timestep", TEXT)
TRUE_CFG = "negative_prompt and a true_cfg_scale above 1"

U_NET = Layout(
    ("sample", "timestep", TEXT, f"{ADDED}text_embeds", f"{ADDED}time_ids"),
    (TEXT, None, f"{ADDED}text_embeds"),
    networks=("unet",),
    place="apart",
)
PRX = Layout((*STATE, PRX_MASK), (TEXT, PRX_MASK), place="keys")
PIXART = Layout((*STATE, MASK, f"{ADDED}resolution", f"{ADDED}aspect_ratio"), (TEXT, MASK), place="apart")
FLUX2 = Layout((*STATE, "txt_ids", "guidance"), (TEXT, "txt_ids"), together=False)

LAYOUTS: dict[str, Layout] = {
    # one call of the network for the negative prompts and the prompts
    "StableDiffusionPipeline": U_NET,
    "StableDiffusionXLPipeline": U_NET,
    "StableDiffusion3Pipeline": Layout(
        (*STATE, POOLED), (TEXT, None, POOLED), place="after", tokenizers=("tokenizer", "tokenizer_3")
    ),
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
    "HunyuanDiTPipeline": Layout(
        (*STATE, "text_embedding_mask", f"{TEXT}_t5", "text_embedding_mask_t5", "image_meta_size", "style"),
        (TEXT, None, "text_embedding_mask"),
        (
            ("", {"max_sequence_length": 77, "text_encoder_index": 0}),
            ("_t5", {"max_sequence_length": 256, "text_encoder_index": 1}),
        ),
    ),
    "SanaPipeline": Layout((*STATE, MASK), (TEXT, MASK), place="apart"),
    # lists of images and texts, and the negative velocity as output
    "ZImagePipeline": Layout(
        ("x", "t", "cap_feats"), ("cap_feats",), negatives_first=False, sign=-1.0, switch="guidance_scale above 0"
    ),
    # one call for the prompts, and then one for the negative prompts
    "FluxPipeline": Layout(
        (*STATE, POOLED, "guidance"),
        (TEXT, POOLED),
        together=False,
        switch=TRUE_CFG,
        place="before",
        tokenizers=("tokenizer_2",),
    ),
    "Flux2Pipeline": FLUX2,
    "Flux2KleinPipeline": FLUX2,
    "QwenImagePipeline": Layout(
        (*STATE, f"{TEXT}_mask", "guidance"), (TEXT, f"{TEXT}_mask"), together=False, switch=TRUE_CFG
    ),
    "WanPipeline": Layout(STATE, (TEXT,), networks=("transformer", "transformer_2"), together=False, place="apart"),
}
