"""Training of a small latent text-to-image model with the networks of Stable Diffusion."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor

from dng_lightning.data.pixels import to_float
from dng_lightning.errors import SettingError, check_in
from dng_lightning.parametrization import Prediction
from dng_lightning.schedule import LinearSchedule, NoiseSchedule
from dng_lightning.text_to_image.model import LatentUNet
from dng_lightning.text_to_image.optional_deps import libraries
from scripts.captioned_digits.autoencoder import AutoencoderModule
from scripts.captioned_digits.captions import MOST_WORDS, VOCABULARY
from scripts.captioned_digits.data import CaptionedDigits
from scripts.captioned_images import networks
from scripts.captioned_images.data import Captioned
from scripts.captioned_images.tokenizer import captions_tokenizer
from scripts.captioned_images.training import TextToImageTraining

SCALED_BY = 4096  # training images at most that the latents' scale is measured on


class TextToImageModule(TextToImageTraining):
    """Trains a U-Net of latents and its text encoder together, for a given autoencoder.

    Latents are scaled to unit variance, measured on the first training images; in the exported model that factor is the
    autoencoder's ``scaling_factor``.

    Args:
        autoencoder: checkpoint of an ``AutoencoderModule``.
        unet: settings of diffusers' ``UNet2DConditionModel``, besides those that follow from the other parts.
        text_encoder: settings of transformers' ``CLIPTextConfig``, likewise.
        schedule: the noise schedule, one that preserves the variance; None for DDPM's linear one with 1,000 levels.
        prediction: what the U-Net predicts: eps, x0 or v.
        caption_dropout: share of the images that are trained with the empty caption, in [0, 1].
        snr_gamma: weigh the levels by min-SNR-gamma; None for none, see ``DiffusionModule``.
        optimizer: makes the optimiser from the parameters of U-Net and text encoder.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        compile: compile the U-Net for training (needs a C++ compiler on CPUs); faster once the first step is over.

    Attributes:
        net: the U-Net.
        text_encoder: a ``CLIPTextModel``.
        vae: the autoencoder, which is not trained.
        tokenizer: of the captions' words.

    Raises:
        SettingError: the settings do not make networks, or no scheduler of diffusers' has the schedule's levels, or the
            autoencoder cannot be used, or the extra ``text-to-image`` is not installed.
    """

    net: Any  # a UNet2DConditionModel
    learns_from = CaptionedDigits

    def __init__(
        self,
        autoencoder: str,
        unet: dict[str, Any],
        text_encoder: dict[str, Any],
        schedule: NoiseSchedule | None = None,
        prediction: Prediction = "v",
        caption_dropout: float = 0.15,
        snr_gamma: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.keep_hyperparameters("schedule", "optimizer", "scheduler")
        check_in("[0, 1]", caption_dropout=caption_dropout)
        check_in("(0, inf)", snr_gamma=snr_gamma)
        self.schedule, self.prediction = schedule or LinearSchedule(), prediction
        self.snr_gamma, self.optimizer, self.scheduler, self.compile_net = snr_gamma, optimizer, scheduler, compile
        libraries()  # missing ones are missed now
        trained = AutoencoderModule.load(autoencoder)
        self.vae = trained.net.train()  # train() only silences a warning
        self.image_shape = trained.image_shape
        self.tokenizer = captions_tokenizer(VOCABULARY, MOST_WORDS)
        self.text_encoder = networks.text_encoder(text_encoder, self.tokenizer)
        self.net = networks.unet(unet, self.vae, self.text_encoder).to(memory_format=torch.channels_last)
        networks.scheduler(self.schedule, prediction)  # refuses a schedule that has none
        self.caption_dropout = caption_dropout
        self.scale: float | None = None  # not measured yet

    def setup(self, stage: str) -> None:
        """Take over the facts about the data; compile the U-Net if set.

        Raises:
            SettingError: the data are not pictures with captions, or of another size than the autoencoder's.
        """
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CaptionedDigits) and tuple(data.image_shape) != tuple(self.image_shape):
            sizes = f"images of {self.image_shape}, the data's are {data.image_shape}"
            raise SettingError(f"the autoencoder is for {sizes}")
        super().setup(stage)

    def batch_losses(self, batch: Captioned, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """See ``losses``."""
        tokens = networks.tokens(self.tokenizer, batch.captions).to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            mean, deviation = networks.moments(self.vae, batch.images)
        return self.losses(mean, deviation, tokens, generator)

    def losses(
        self, mean: Tensor, deviation: Tensor, tokens: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of each latent at a random level.

        Args:
            mean: of the latents as the autoencoder has them, (B, C, H, W).
            deviation: their standard deviations, likewise.
            tokens: the captions as numbers, (B, length).
            generator: source of the latents, levels, noise and caption dropout; None for torch's global one.

        Returns:
            The errors (B,) and the levels (B,).
        """
        drawn = torch.randn(mean.shape, device=mean.device, generator=generator)
        x_0 = (mean + deviation * drawn) * self._measured_scale()
        x_t, target, t, dropped = self.noised(x_0, self.caption_dropout, generator)
        empty = networks.tokens(self.tokenizer, [""]).to(mean.device)
        texts = self.text_encoder(torch.where(dropped.unsqueeze(1), empty, tokens)).last_hidden_state
        output = self.net(x_t, self.schedule.timestep(t), texts).sample.float()
        return (output - target).square().flatten(1).mean(1), t

    def pipeline(self) -> Any:
        """The ``StableDiffusionPipeline`` of these networks, for sampling and for export.

        Raises:
            SettingError: the latents' scale is not known, because nothing was trained.
        """
        if self.scale is None:
            raise SettingError("the scale of the latents is measured in training: fit the model, or load a checkpoint")
        self.vae.register_to_config(scaling_factor=self.scale)
        parts = (
            self.vae,
            self.text_encoder,
            self.tokenizer,
            self.net,
            networks.scheduler(self.schedule, self.prediction),
        )
        unsafe = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return libraries()[0].StableDiffusionPipeline(*parts, **unsafe)

    def model(self) -> LatentUNet:
        """The model that draws images; it shares the networks, which can be trained on.

        Raises:
            SettingError: see ``pipeline``.
        """
        return LatentUNet(self.pipeline())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the scale besides the facts about the data."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["latent_scale"] = self.scale

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        super().on_load_checkpoint(checkpoint)
        self.scale = checkpoint["latent_scale"]

    @torch.no_grad()
    def _measured_scale(self) -> float:
        """One over the standard deviation of the latents, the variance of each by itself included."""
        if self.scale is None:
            images = self.trainer.datamodule.part("train").images[:SCALED_BY]  # type: ignore[attr-defined]
            with torch.autocast(self.device.type, enabled=False):
                found = [networks.moments(self.vae, to_float(part.to(self.device))) for part in images.split(256)]
            mean, deviation = (torch.cat(parts).cpu().double() for parts in zip(*found, strict=True))
            variance = mean.square().mean() - mean.mean().square() + deviation.square().mean()
            self.scale = float(variance.rsqrt())
        return self.scale
