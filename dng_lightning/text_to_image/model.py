"""Latent text-to-image models in the diffusers format: Stable Diffusion 1.x and 2.x, and SDXL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError, reason
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import denoised_of
from dng_lightning.pretrained import diffusers_format
from dng_lightning.text_to_image.optional_deps import PIPELINES, inform, libraries, quiet
from dng_lightning.text_to_image.prompts import Prompts
from dng_lightning.text_to_image.text_embeddings import TextEmbeddings

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


class TextToImageModel(nn.Module):
    """A text-conditioned U-Net of latents, the decoder of its latents, and its noise levels.

    The T levels are the timesteps 0..T - 1 of the scheduler, whose other settings are ignored. The chain of ``sample``
    is that of diffusers with ``timestep_spacing`` "trailing", ``set_alpha_to_one`` and no ``clip_sample``, where T is a
    multiple of the steps; Stable Diffusion's own spacing is "leading", which starts a little below the noisiest level.
    Diffusers starts from draws of variance 1, ``sample`` from draws of variance sigma_T^2 (0.995 for Stable Diffusion).

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline`` of diffusers.
        frozen: put the networks in evaluation mode, without gradients; else they are left as they are.

    Attributes:
        schedule: its noise levels.
        prediction: what the U-Net predicts.

    Raises:
        SettingError: the U-Net takes or gives other things besides, the scheduler's noise levels are not DDPM's or end
            in pure noise, or the tokenizer is not the text encoder's.
    """

    def __init__(self, pipeline: Any, frozen: bool = True) -> None:
        super().__init__()
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.encoders = [pipeline]  # in a list, so that the text encoders stay on their device
        self.schedule = diffusers_format.schedule_of(pipeline.scheduler)
        self.prediction = diffusers_format.prediction_of(pipeline.scheduler)
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
        diffusers, _ = libraries()
        index = diffusers_format.find(name, "DiffusionPipeline", UNUSED)
        if Path(name).is_file() and index.name != diffusers_format.INDEX:
            raise SettingError(
                f"{name} is a single file: make a folder of it once, by diffusers' StableDiffusionPipeline."
                f"from_single_file({str(index)!r}).save_pretrained(FOLDER), and name that as checkpoint"
            )
        folder = index.parent
        try:
            kind = diffusers.DiffusionPipeline.load_config(folder).get("_class_name")
            if kind not in PIPELINES:
                raise ValueError(f"it is a {kind}, not a {' or a '.join(PIPELINES)}")
            settings = {"low_cpu_mem_usage": False, "dtype": DTYPES[precision]}  # True warns of a missing library
            unused = {"safety_checker": None, "requires_safety_checker": False} if kind == PIPELINES[0] else {}
            with quiet():
                pipeline = getattr(diffusers, kind).from_pretrained(folder, **settings, **unused)
            pipeline.vae.float()
            return cls(pipeline)
        except Exception as error:  # a foreign folder can fail in any way
            message = f"{folder} holds no text-to-image model in diffusers' format: {reason(error)}"
            raise SettingError(message) from error

    @property
    def pixels(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image, by default of the size that the model was trained on.

        Args:
            height: in pixels.
            width: in pixels.

        Raises:
            SettingError: the size is not a multiple of the U-Net's coarsest pixel.
        """
        whole, own = self.pixels * 2 ** (len(self.unet.config.block_out_channels) - 1), self.unet.config.sample_size
        h, w = own if isinstance(own, list | tuple) else (own, own)
        for name, side in (("height", height), ("width", width)):
            if side is not None and (side < whole or side % whole):
                raise SettingError(f"{name} must be a multiple of {whole} pixels; got {side}")
        h, w = (latents if side is None else side // self.pixels for side, latents in ((height, h), (width, w)))
        return self.vae.config.latent_channels, h, w

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negatives: Sequence[str] = ()) -> Prompts:
        """Encode P prompts, K negative prompts and the empty prompt.

        Texts longer than the encoder takes are cut, and a line says so.
        """
        (pipeline,) = self.encoders
        texts, tokenizer = [*prompts, *negatives, ""], pipeline.tokenizer
        most = tokenizer.model_max_length - 2  # besides the tokens of start and end
        with quiet():
            for text in texts:
                if lost := tokenizer.tokenize(text)[most:]:
                    cut = tokenizer.decode(tokenizer.convert_tokens_to_ids(lost))
                    inform(f"The prompt {_short(text)!r} is cut after {most} tokens: {_short(cut)!r} is not read.")
            one_each = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
            tokens, _, *others = pipeline.encode_prompt(texts, device=pipeline.text_encoder.device, **one_each)
        pooled = others[0] if others else None
        if pooled is not None and pipeline.config.force_zeros_for_empty_prompt:
            tokens[-1], pooled[-1] = 0, 0
        return Prompts(tuple(prompts), tuple(negatives), TextEmbeddings(tokens, pooled))

    def forward(self, x_t: Tensor, level: NoiseLevel, texts: TextEmbeddings) -> Tensor:
        """The denoised prediction, (B, C, H, W) fp32.

        Args:
            x_t: noisy latents (B, C, H, W).
            level: their noise level.
            texts: the prompt of each.
        """
        dtype, added = self.unet.dtype, None
        texts = texts.to(dtype)
        if texts.pooled is not None:
            added = {"text_embeds": texts.pooled, "time_ids": self._size(x_t).to(dtype)}
        timesteps = torch.full((len(x_t),), level.timestep, device=x_t.device)
        output = self.unet(x_t.to(dtype), timesteps, texts.tokens, added_cond_kwargs=added).sample
        return denoised_of(output.float(), x_t, level.alpha, level.sigma, self.prediction)

    def decode(self, latents: Tensor) -> Tensor:
        """The images of ``latents``, (B, 3, height, width), about [-1, 1], not clamped."""
        images: Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return images.float()

    def save_memory(self) -> None:
        """Attend in slices, decode images one by one and in tiles: slower, and equal except at the seams of tiles."""
        self.unet.set_attention_slice("auto")
        self.vae.enable_slicing()
        self.vae.enable_tiling()

    def _size(self, x_t: Tensor) -> Tensor:
        """SDXL's size conditioning: size of the original, corner of its crop, and target size."""
        height, width = (side * self.pixels for side in x_t.shape[-2:])
        return torch.tensor([[height, width, 0, 0, height, width]] * len(x_t), device=x_t.device)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"
