"""Latent text-to-image models in diffusers' format: Stable Diffusion 1.x and 2.x, and SDXL."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dng_lightning import diffusers_format
from dng_lightning.errors import SettingError, reason
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import denoised_of
from dng_lightning.text_to_image.optional_deps import PIPELINES, inform, libraries, quiet
from dng_lightning.text_to_image.prompts import Prompts

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


class TextToImageModel(nn.Module):
    """A U-Net of latents that is told a text, the decoder of its latents, and its noise levels.

    The T levels are the timesteps 0..T - 1 of its scheduler, of which nothing but these and the kind of prediction
    counts: the chain is walked by ``sample``. That is diffusers' ``timestep_spacing`` "trailing" with
    ``set_alpha_to_one`` and without ``clip_sample``, where T is a multiple of the steps; Stable Diffusion's own is
    "leading", which starts a little below the noisiest level. Diffusers starts from draws of variance 1, ``sample``
    from draws of variance sigma_T^2 (0.995 for Stable Diffusion).

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline`` of diffusers'.
        frozen: take its networks for use alone; else they are left as they are, to be trained on.

    Attributes:
        schedule: its noise levels.
        prediction: what the U-Net predicts.

    Raises:
        SettingError: the U-Net takes or gives other things besides, the noise levels end in pure noise, or the
            tokenizer is not the text encoder's.
    """

    def __init__(self, pipeline: Any, frozen: bool = True) -> None:
        super().__init__()
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.encoders = [pipeline]  # in a list, so that they stay where they are: they are needed but once
        self.schedule = diffusers_format.schedule_of(pipeline.scheduler)
        self.prediction = diffusers_format.PREDICTIONS[pipeline.scheduler.config.prediction_type]
        self.schedule.check(self.prediction)
        channels = self.vae.config.latent_channels
        if (self.unet.config.in_channels, self.unet.config.out_channels) != (channels, channels):
            raise SettingError("its U-Net takes or gives more than latents (inpainting, depth, a variance)")
        if pipeline.tokenizer.model_max_length > pipeline.text_encoder.config.max_position_embeddings:
            raise SettingError("its tokenizer is missing, or reads longer texts than its text encoder")
        if frozen:
            self.eval().requires_grad_(False)

    @classmethod
    def load(cls, name: str, precision: Precision = "fp32") -> "TextToImageModel":
        """Read a model in diffusers' format.

        Args:
            name: its folder, or a model of the Hugging Face hub, `owner/model`, which is downloaded if it is not in its
                cache. What exists here wins.
            precision: of the U-Net and the text encoders; the decoder's is fp32.

        Raises:
            SettingError: there is none, it cannot be had, it is something else, or the extra is not installed.
        """
        if precision not in DTYPES:
            raise SettingError(f"precision must be fp32 or bf16; got {precision}")
        diffusers = libraries()
        folder = diffusers_format.find(name, "DiffusionPipeline", UNUSED).parent
        try:
            kind = diffusers.DiffusionPipeline.load_config(folder).get("_class_name")
            if kind not in PIPELINES:
                raise ValueError(f"it is a {kind}, not a {' or a '.join(PIPELINES)}")
            plain = {"low_cpu_mem_usage": False}  # else a warning asks for another library
            unused = {"safety_checker": None, "requires_safety_checker": False} if kind == PIPELINES[0] else {}
            with quiet():
                pipeline = getattr(diffusers, kind).from_pretrained(folder, dtype=DTYPES[precision], **plain, **unused)
            pipeline.vae.float()
            return cls(pipeline)
        except Exception as error:  # a foreign folder can fail in any way
            raise SettingError(
                f"{folder} holds no text-to-image model in diffusers' format: {reason(error)}"
            ) from error

    @property
    def pixels(self) -> int:
        """Pixels a latent, along either side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image, by default of the size that the model was trained on.

        Args:
            height: in pixels.
            width: in pixels.

        Raises:
            SettingError: the size is not a multiple of the U-Net's coarsest pixel.
        """
        own = self.unet.config.sample_size
        own = own if isinstance(own, list | tuple) else (own, own)
        whole = self.pixels * 2 ** (len(self.unet.config.block_out_channels) - 1)
        sides = []
        for name, given, latents in (("height", height, own[0]), ("width", width, own[1])):
            if given is not None and (given < whole or given % whole):
                raise SettingError(f"{name} must be a multiple of {whole} pixels; got {given}")
            sides.append(latents if given is None else given // self.pixels)
        return self.vae.config.latent_channels, sides[0], sides[1]

    @torch.no_grad()
    def encode(self, wanted: Sequence[str], negative: Sequence[str] = ()) -> Prompts:
        """Read the prompts, those to avoid and the empty one; what is longer than the encoder reads is cut, and said.

        Args:
            wanted: P prompts.
            negative: K of them.
        """
        (pipeline,) = self.encoders
        texts = [*wanted, *negative, ""]
        read = pipeline.tokenizer.model_max_length - 2  # less its marks of start and end
        with quiet():
            for text in texts:
                pieces = pipeline.tokenizer.tokenize(text)
                if len(pieces) > read:
                    lost = pipeline.tokenizer.decode(pipeline.tokenizer.convert_tokens_to_ids(pieces[read:]))
                    said = f"The prompt {_short(text)!r} is cut after {read} tokens: {_short(lost)!r} is not read."
                    inform(said)
            one_each = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
            tokens, _, *pooled = pipeline.encode_prompt(texts, device=pipeline.text_encoder.device, **one_each)
        whole = pooled[0] if pooled else None
        if whole is not None and pipeline.config.force_zeros_for_empty_prompt:
            tokens[-1], whole[-1] = 0, 0
        return Prompts(tuple(wanted), tuple(negative), tokens, whole)

    def forward(self, x_t: Tensor, level: NoiseLevel, tokens: Tensor, pooled: Tensor | None = None) -> Tensor:
        """The denoised prediction, (B, C, H, W) fp32.

        Args:
            x_t: noisy latents (B, C, H, W).
            level: their noise level.
            tokens: the prompt of each as encoded, (B, length, width).
            pooled: the same as a whole, (B, width), for models that take it (SDXL).
        """
        dtype = self.unet.dtype
        added = None if pooled is None else {"text_embeds": pooled.to(dtype), "time_ids": self._size(x_t).to(dtype)}
        timesteps = torch.full((len(x_t),), level.timestep, device=x_t.device)
        output = self.unet(x_t.to(dtype), timesteps, tokens.to(dtype), added_cond_kwargs=added).sample
        return denoised_of(output.float(), x_t, level.alpha, level.sigma, self.prediction)

    def decode(self, latents: Tensor) -> Tensor:
        """The images of ``latents``, (B, 3, height, width), about [-1, 1], not clamped."""
        images: Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return images.float()

    def save_memory(self) -> None:
        """Attend in slices and decode images one by one and in tiles: slower, and the same but for seams of tiles."""
        self.unet.set_attention_slice("auto")
        self.vae.enable_slicing()
        self.vae.enable_tiling()

    def _size(self, x_t: Tensor) -> Tensor:
        """SDXL is told the size of the original, the corner of its crop, and the size that is wanted."""
        height, width = (side * self.pixels for side in x_t.shape[-2:])
        return torch.tensor([[height, width, 0, 0, height, width]] * len(x_t), device=x_t.device)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"
