"""Text-to-image models in the diffusers format: U-Nets of latents (Stable Diffusion), transformers of pixels (PRX)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError, reason, require
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import Prediction, denoised_of
from dng_lightning.pretrained import diffusers_format
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.text_to_image.layouts import LAYOUTS
from dng_lightning.text_to_image.optional_deps import PIPELINES, inform, libraries, quiet
from dng_lightning.text_to_image.prompts import Prompts
from dng_lightning.text_to_image.text_embeddings import TextEmbeddings

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


class TextToImageModel(nn.Module, ABC):
    """A text-conditioned denoiser, the decoder of its latents if it has any, and its noise levels.

    Args:
        pipeline: of diffusers.
        denoiser: its denoising network.
        frozen: put the networks in evaluation mode, without gradients; else they are left as they are.

    Attributes:
        denoiser: the same.
        schedule: its noise levels.
        prediction: what the denoiser predicts.
        channels: of its images.
        edits_attention: whether a guidance can edit its attention to the text.

    Raises:
        SettingError: its tokenizer is not the text encoder's.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    channels: int
    edits_attention = False

    def __init__(self, pipeline: Any, denoiser: Any, frozen: bool = True) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.encoders = [pipeline]  # in a list, so that the text encoders stay on their device
        if frozen:
            self.eval().requires_grad_(False)

    @classmethod
    def load(cls, name: str, precision: Precision = "fp32") -> "TextToImageModel":
        """Read a model in diffusers' format.

        Args:
            name: its folder, or a model of the Hugging Face hub, `owner/model`, which is downloaded if it is not in its
                cache. What exists here wins.
            precision: of the denoiser and the text encoders; the decoder's is fp32.

        Raises:
            SettingError: there is none, it cannot be had, it is something else, or the extra is not installed.
        """
        if precision not in DTYPES:
            raise SettingError(f"precision must be fp32 or bf16; got {precision}")
        diffusers, _ = libraries()
        index = diffusers_format.find(name, UNUSED)
        if Path(name).is_file() and index.name != diffusers_format.INDEX:
            raise SettingError(
                f"{name} is a single file: make a folder of it once, by diffusers' StableDiffusionPipeline."
                f"from_single_file({str(index)!r}).save_pretrained(FOLDER), and name that as checkpoint"
            )
        folder = index.parent
        try:
            kind = diffusers.DiffusionPipeline.load_config(folder).get("_class_name")
            if kind not in PIPELINES:
                other = "; class_path PipelineSampler samples from it (sd3.yaml)" if kind in LAYOUTS else ""
                raise ValueError(f"it is a {kind}, not a {' or a '.join(PIPELINES)}{other}")
            settings = {"low_cpu_mem_usage": False, "dtype": DTYPES[precision]}  # True warns of a missing library
            unused = {"safety_checker": None, "requires_safety_checker": False} if kind == PIPELINES[0] else {}
            with quiet():
                pipeline = getattr(diffusers, kind).from_pretrained(folder, **settings, **unused)
            return PixelTransformer(pipeline) if kind == "PRXPixelPipeline" else LatentUNet(pipeline)
        except Exception as error:  # a foreign folder can fail in any way
            message = f"{folder} holds no text-to-image model in diffusers' format: {reason(error)}"
            raise SettingError(message) from error

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
            encoded = pipeline.encode_prompt(texts, device=pipeline.text_encoder.device, **one_each)
        return Prompts(tuple(prompts), tuple(negatives), self._embeddings(encoded))

    @property
    @abstractmethod
    def pixels(self) -> int:
        """Pixels per latent along each side; 1 for a model of pixels."""

    @abstractmethod
    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image, by default of the size that the model was trained on.

        Args:
            height: in pixels.
            width: in pixels.

        Raises:
            SettingError: the size is not a multiple of the denoiser's coarsest pixel.
        """

    @abstractmethod
    def forward(self, x_t: Tensor, level: NoiseLevel, texts: TextEmbeddings) -> Tensor:
        """The denoised prediction, (B, C, H, W) fp32.

        Args:
            x_t: noisy latents (B, C, H, W).
            level: their noise level.
            texts: the prompt of each.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The images of ``latents``, (B, channels, height, width), about [-1, 1], not clamped."""

    @abstractmethod
    def save_memory(self) -> None:
        """Use less memory where the model can, at the cost of time."""

    @abstractmethod
    def _embeddings(self, encoded: Sequence[Tensor]) -> TextEmbeddings:
        """What the pipeline's ``encode_prompt`` returns, the empty prompt last."""


def _sides(own: int | Sequence[int], height: int | None, width: int | None, whole: int) -> tuple[int, int]:
    """Height and width in pixels, by default the model's ``own``; both are multiples of ``whole``."""
    h, w = (own, own) if isinstance(own, int) else own
    for name, side in (("height", height), ("width", width)):
        if side is not None and (side < whole or side % whole):
            raise SettingError(f"{name} must be a multiple of {whole} pixels; got {side}")
    return height or h, width or w


class LatentUNet(TextToImageModel):
    """A text-conditioned U-Net of latents: Stable Diffusion 1.x and 2.x, and SDXL.

    The T levels are the timesteps 0..T - 1 of the scheduler, whose other settings are ignored. The chain of ``sample``
    is that of diffusers with ``timestep_spacing`` "trailing", ``set_alpha_to_one`` and no ``clip_sample``, where T is a
    multiple of the steps; Stable Diffusion's own spacing is "leading", which starts a little below the noisiest level.
    Diffusers starts from draws of variance 1, ``sample`` from draws of variance sigma_T^2 (0.995 for Stable Diffusion).

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline`` of diffusers.
        frozen: see ``TextToImageModel``.

    Attributes:
        vae: the decoder of the latents, in fp32.

    Raises:
        SettingError: the U-Net takes or gives other things besides, the scheduler's noise levels are not DDPM's or end
            in pure noise, or the tokenizer is not the text encoder's.
    """

    edits_attention = True

    def __init__(self, pipeline: Any, frozen: bool = True) -> None:
        super().__init__(pipeline, pipeline.unet, frozen)
        self.vae = pipeline.vae.float()
        self.schedule = diffusers_format.schedule_of(pipeline.scheduler)
        self.prediction = diffusers_format.prediction_of(pipeline.scheduler)
        self.schedule.check(self.prediction)
        channels, self.channels = self.vae.config.latent_channels, self.vae.config.out_channels
        if (self.denoiser.config.in_channels, self.denoiser.config.out_channels) != (channels, channels):
            raise SettingError("its U-Net takes or gives more than latents (inpainting, depth, a variance)")
        if pipeline.tokenizer.model_max_length > pipeline.text_encoder.config.max_position_embeddings:
            raise SettingError("its tokenizer is missing, or reads longer texts than its text encoder")
        if frozen:
            self.vae.eval().requires_grad_(False)

    @property
    def pixels(self) -> int:
        """See ``TextToImageModel``."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """See ``TextToImageModel``."""
        config, pixels = self.denoiser.config, self.pixels
        own = config.sample_size
        own = [pixels * side for side in own] if isinstance(own, list | tuple) else pixels * own
        h, w = _sides(own, height, width, pixels * 2 ** (len(config.block_out_channels) - 1))
        return self.vae.config.latent_channels, h // pixels, w // pixels

    def forward(self, x_t: Tensor, level: NoiseLevel, texts: TextEmbeddings) -> Tensor:
        """See ``TextToImageModel``."""
        dtype, added = self.denoiser.dtype, None
        texts = texts.to(dtype)
        if texts.pooled is not None:
            added = {"text_embeds": texts.pooled, "time_ids": self._size(x_t).to(dtype)}
        timesteps = torch.full((len(x_t),), level.timestep, device=x_t.device)
        output = self.denoiser(x_t.to(dtype), timesteps, texts.tokens, added_cond_kwargs=added).sample
        return denoised_of(output.float(), x_t, level.alpha, level.sigma, self.prediction)

    def decode(self, latents: Tensor) -> Tensor:
        """See ``TextToImageModel``."""
        images: Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return images.float()

    def save_memory(self) -> None:
        """Attend in slices, decode images one by one and in tiles: slower, and equal except at the seams of tiles."""
        self.denoiser.set_attention_slice("auto")
        self.vae.enable_slicing()
        self.vae.enable_tiling()

    def _embeddings(self, encoded: Sequence[Tensor]) -> TextEmbeddings:
        tokens, _, *others = encoded
        pooled = others[0] if others else None
        if pooled is not None and self.encoders[0].config.force_zeros_for_empty_prompt:
            tokens[-1], pooled[-1] = 0, 0
        return TextEmbeddings(tokens, pooled)

    def _size(self, x_t: Tensor) -> Tensor:
        """SDXL's size conditioning: size of the original, corner of its crop, and target size."""
        height, width = (side * self.pixels for side in x_t.shape[-2:])
        return torch.tensor([[height, width, 0, 0, height, width]] * len(x_t), device=x_t.device)


class PixelTransformer(TextToImageModel):
    """A text-conditioned transformer of pixels that predicts the clean image: PRXPixel, on a rectified flow.

    The T levels are those of the scheduler; of N steps diffusers' chain visits others, evenly spaced from 1 to 1 / T,
    and it bounds sigma from below where it divides by it.

    Args:
        pipeline: a ``PRXPixelPipeline`` of diffusers.
        frozen: see ``TextToImageModel``.

    Raises:
        SettingError: the scheduler is not a plain flow's, or ftfy, which the pipeline needs, is not installed.
    """

    prediction = "x0"

    def __init__(self, pipeline: Any, frozen: bool = True) -> None:
        super().__init__(pipeline, pipeline.transformer, frozen)
        require("ftfy", "a PRXPixelPipeline", "portraits")
        found = diffusers_format.flow_or_edm(pipeline.scheduler)
        if found is None or found[1] != "flow":
            raise SettingError(f"its {type(pipeline.scheduler).__name__} is not FlowMatchEulerDiscreteScheduler")
        flow, self._total = found[0], pipeline.scheduler.config.num_train_timesteps
        self.schedule = NoiseSchedule(flow.alpha[1:], flow.sigma[1:] * pipeline.config.noise_scale, flow.timesteps)
        self.channels, self._own = self.denoiser.config.in_channels, pipeline.config.default_sample_size

    @property
    def pixels(self) -> int:
        """1."""
        return 1

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """See ``TextToImageModel``."""
        return self.channels, *_sides(self._own, height, width, self.denoiser.config.patch_size)

    def forward(self, x_t: Tensor, level: NoiseLevel, texts: TextEmbeddings) -> Tensor:
        """See ``TextToImageModel``."""
        dtype = self.denoiser.dtype
        texts = texts.to(dtype)
        times = torch.full((len(x_t),), level.timestep / self._total, device=x_t.device)
        output: Tensor = self.denoiser(x_t.to(dtype), times, texts.tokens, attention_mask=texts.mask).sample
        return output.float()

    def decode(self, latents: Tensor) -> Tensor:
        """The same."""
        return latents

    def save_memory(self) -> None:
        """There is nothing to save."""

    def _embeddings(self, encoded: Sequence[Tensor]) -> TextEmbeddings:
        return TextEmbeddings(encoded[0], mask=encoded[1])


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"
