"""Text-to-image models in the diffusers format: U-Nets of latents (Stable Diffusion), transformers of pixels (PRX)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError, require
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import Prediction, denoised_of
from dng_lightning.pretrained import diffusers_format
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.text_to_image.layouts import ADDED, PRX, U_NET, Layout
from dng_lightning.text_to_image.network_call import NetworkCall
from dng_lightning.text_to_image.optional_deps import Precision, inform, quiet
from dng_lightning.text_to_image.pipeline_folder import open_pipeline, unreadable
from dng_lightning.text_to_image.prompts import Prompts

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "PRXPixelPipeline")


class TextToImageModel(nn.Module, ABC):
    """A text-conditioned denoiser, the decoder of its latents if it has any, and its noise levels.

    Args:
        pipeline: of diffusers.
        denoiser: its denoising network.

    Attributes:
        denoiser: the same.
        schedule: its noise levels.
        prediction: what the denoiser predicts.
        channels: channels of the images.
        latent_channels: channels of the latents.
        pixels: pixels per latent along each side; 1 for a model of pixels.
        multiple: a side of the images in pixels is a multiple of it.
        size: side of the images of the training in pixels, or (height, width).
        layout: how the pipeline calls the denoiser.

    Raises:
        SettingError: its tokenizer is not the text encoder's.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    channels: int
    latent_channels: int
    pixels: int = 1
    multiple: int
    size: int | Sequence[int]
    layout: Layout

    def __init__(self, pipeline: Any, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.encoders = [pipeline]  # in a list, so that the text encoders stay on their device

    @classmethod
    def load(cls, name: str, precision: Precision = "fp32") -> "TextToImageModel":
        """Read a model in diffusers' format.

        Args:
            name: a folder, or a Hugging Face model, `owner/model`, which is downloaded if the cache lacks it. A local
                folder takes precedence.
            precision: precision of the denoiser and the text encoders; the decoder's is fp32.

        Raises:
            SettingError: the model is missing, of another kind or cannot be downloaded, or the extra is not installed.
        """
        pipeline, folder = open_pipeline(name, precision, PIPELINES)
        kind = PixelTransformer if type(pipeline).__name__ == "PRXPixelPipeline" else LatentUNet
        try:
            return kind(pipeline)
        except Exception as error:  # a foreign folder can fail in any way
            raise unreadable(folder, error) from error

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negatives: Sequence[str] = ()) -> Prompts:
        """Encode P prompts, K negative prompts and the empty prompt.

        Texts that are too long for the encoder are cut, with a message.
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
        rows = {name: value for name, value in zip(self.layout.encoded, encoded, strict=False) if name}
        if pipeline.config.get("force_zeros_for_empty_prompt"):  # SDXL
            for value in rows.values():
                value[-1] = 0
        return Prompts(tuple(prompts), tuple(negatives), rows)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image, by default of the size that the model was trained on.

        Args:
            height: in pixels.
            width: in pixels.

        Raises:
            SettingError: the size is not a multiple of the denoiser's coarsest pixel.
        """
        for name, side in (("height", height), ("width", width)):
            if side is not None and (side < self.multiple or side % self.multiple):
                raise SettingError(f"{name} must be a multiple of {self.multiple} pixels; got {side}")
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.latent_channels, (height or h) // self.pixels, (width or w) // self.pixels

    @abstractmethod
    def forward(self, x_t: Tensor, level: NoiseLevel, texts: Mapping[str, Tensor]) -> Tensor:
        """The denoised prediction, (B, C, H, W) fp32.

        Args:
            x_t: noisy latents (B, C, H, W).
            level: their noise level.
            texts: arguments of the denoiser with the prompt of each, see ``Prompts``.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """The images of ``latents``, (B, channels, height, width), about [-1, 1], not clamped."""
        return latents

    def save_memory(self) -> None:  # a model without a decoder has nothing to save
        """Use less memory where the model can, at the cost of time."""


class LatentUNet(TextToImageModel):
    """A text-conditioned U-Net of latents: Stable Diffusion 1.x and 2.x, and SDXL.

    The T levels are the timesteps 0..T - 1 of the scheduler, whose other settings are ignored. The chain of ``sample``
    is that of diffusers with ``timestep_spacing`` "trailing", ``set_alpha_to_one`` and no ``clip_sample``, where T is a
    multiple of the steps; Stable Diffusion's own spacing is "leading", which starts a little below the noisiest level.
    Diffusers starts from draws of variance 1, ``sample`` from draws of variance sigma_T^2 (0.995 for Stable Diffusion).

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline`` of diffusers.

    Attributes:
        vae: the decoder of the latents, in fp32.

    Raises:
        SettingError: the U-Net takes or gives other things besides, the scheduler's noise levels are not DDPM's or end
            in pure noise, or the tokenizer is not the text encoder's.
    """

    layout = U_NET

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline, pipeline.unet)
        self.vae = pipeline.vae.float()
        self.schedule = diffusers_format.schedule_of(pipeline.scheduler)
        self.prediction = diffusers_format.prediction_of(pipeline.scheduler)
        self.schedule.check(self.prediction)
        config, self.channels = self.denoiser.config, self.vae.config.out_channels
        self.latent_channels = self.vae.config.latent_channels
        self.pixels = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.multiple, own = self.pixels * 2 ** (len(config.block_out_channels) - 1), config.sample_size
        self.size = self.pixels * own if isinstance(own, int) else [self.pixels * side for side in own]
        if (config.in_channels, config.out_channels) != (self.latent_channels, self.latent_channels):
            raise SettingError("its U-Net takes or gives more than latents (inpainting, depth, a variance)")
        if pipeline.tokenizer.model_max_length > pipeline.text_encoder.config.max_position_embeddings:
            raise SettingError("its tokenizer is missing, or reads longer texts than its text encoder")

    def forward(self, x_t: Tensor, level: NoiseLevel, texts: Mapping[str, Tensor]) -> Tensor:
        """See ``TextToImageModel``."""
        dtype = self.denoiser.dtype
        arguments = {name: value.to(dtype) for name, value in texts.items()}
        if f"{ADDED}text_embeds" in texts:  # SDXL
            arguments[f"{ADDED}time_ids"] = self._size(x_t).to(dtype)
        timesteps = torch.full((len(x_t),), level.timestep, device=x_t.device)
        output = self.denoiser(x_t.to(dtype), timesteps, **NetworkCall(U_NET, arguments).inputs).sample
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

    Raises:
        SettingError: the scheduler is not a plain flow's, or ftfy, which the pipeline needs, is not installed.
    """

    prediction = "x0"
    layout = PRX

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline, pipeline.transformer)
        require("ftfy", "a PRXPixelPipeline", "portraits")
        found = diffusers_format.flow_or_edm(pipeline.scheduler)
        if found is None or found[1] != "flow":
            raise SettingError(f"its {type(pipeline.scheduler).__name__} is not FlowMatchEulerDiscreteScheduler")
        flow, self._total = found[0], pipeline.scheduler.config.num_train_timesteps
        self.schedule = NoiseSchedule(flow.alpha[1:], flow.sigma[1:] * pipeline.config.noise_scale, flow.timesteps)
        self.channels = self.latent_channels = self.denoiser.config.in_channels
        self.multiple, self.size = self.denoiser.config.patch_size, pipeline.config.default_sample_size

    def forward(self, x_t: Tensor, level: NoiseLevel, texts: Mapping[str, Tensor]) -> Tensor:
        """See ``TextToImageModel``."""
        dtype = self.denoiser.dtype
        arguments = {name: value.to(dtype) for name, value in texts.items()}
        times = torch.full((len(x_t),), level.timestep / self._total, device=x_t.device)
        output: Tensor = self.denoiser(x_t.to(dtype), times, **arguments).sample
        return output.float()


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"
