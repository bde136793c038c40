"""Training of the autoencoder whose latents a small text-to-image model draws in."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor

from dng_lightning.errors import SettingError, check_at_least
from dng_lightning.modules.base_module import TrainedModule
from scripts.captioned_digits.attribute_classifier import AttributeClassifier
from scripts.captioned_images import networks
from scripts.captioned_images.data import Captioned


class AutoencoderModule(TrainedModule):
    """Trains diffusers' ``AutoencoderKL``, without an adversary.

    Loss = L1 + L2 + kl_weight KL: mean absolute and mean squared error of a pixel, of a range of 2, and mean divergence
    of a latent from the standard normal, in nats. With L1 alone, training stalls at the background.

    Args:
        net: settings of ``AutoencoderKL``; its blocks follow from ``block_out_channels``, each level after the first
            halves the sides.
        kl_weight: see above, >= 0; the more, the less a small error of a latent shows.
        reader: classifiers of the attributes, for the accuracy on reconstructions in validation, see
            ``AttributeClassifier.load``; None for none.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        compile: compile the network (needs a C++ compiler on CPUs).

    Raises:
        SettingError: the settings do not make a network, or the extra ``text-to-image`` is not installed, or the
            classifiers cannot be used.
    """

    net: Any  # an AutoencoderKL
    for_training = ("reader",)

    def __init__(
        self,
        net: dict[str, Any],
        kl_weight: float = 0.001,
        reader: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.keep_hyperparameters("optimizer", "scheduler")
        check_at_least(0, kl_weight=kl_weight)
        self.net = networks.autoencoder(net)
        self.kl_weight, self.compile_net = kl_weight, compile
        self.optimizer, self.scheduler = optimizer, scheduler
        # in a list, so that it is neither averaged nor stored
        self.readers = [AttributeClassifier.load(reader)] if reader else []

    def setup(self, stage: str) -> None:
        """Take over the facts about the data; compile the network if set.

        Raises:
            SettingError: the data's images are of another size.
        """
        super().setup(stage)
        if not hasattr(self, "image_shape"):  # no datamodule of ours
            return
        config, (channels, *sides) = self.net.config, self.image_shape
        if (config.in_channels, config.out_channels) != (channels,) * 2 or set(sides) != {config.sample_size}:
            raise SettingError(
                f"the network is for {config.in_channels} channels of {config.sample_size}x{config.sample_size}, the "
                f"images have {channels} of {sides[0]}x{sides[1]}: set net.in_channels, out_channels and sample_size"
            )
        if self.compile_net and stage == "fit":
            self.net.encoder.compile()
            self.net.decoder.compile()

    def forward(self, images: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images, draw their latents, and decode these.

        Args:
            images: (B, C, H, W) in [-1, 1].
            generator: of the latents' draws; None for torch's global one.

        Returns:
            The images, fp32, of the shape of ``images``; the latents, and their divergence from the standard normal in
            nats, (B, latent channels, h, w).
        """
        mean, deviation = networks.moments(self.net, images)
        noise = torch.randn(mean.shape, device=mean.device, generator=generator)
        latents = mean + deviation * noise
        again: Tensor = self.net.decode(latents).sample
        divergence = (mean.square() + deviation.square() - 1) / 2 - deviation.log()
        return again.float(), latents, divergence

    def measures(self, images: Tensor, generator: Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstructions of ``images``, the loss and its parts, and the variance of the latents."""
        again, latents, divergence = self(images, generator)
        absolute, squared, kl = (again - images).abs().mean(), (again - images).square().mean(), divergence.mean()
        return again, {
            "loss": absolute + squared + self.kl_weight * kl,
            "absolute_error": absolute,
            "squared_error": squared,
            "kl": kl,
            "latent_variance": latents.square().mean() - latents.mean().square(),
        }

    def training_step(self, batch: Captioned | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One step of the loss."""
        loss = self.measures(batch[0])[1]["loss"]
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Captioned | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss, its parts, the latents' variance, and the accuracy of each attribute on reconstructions."""
        images = batch[0]
        generator = Generator(self.device).manual_seed(batch_idx * self.trainer.world_size + self.global_rank)
        with torch.autocast(images.device.type, enabled=False), networks.eager(self.compile_net):
            again, measures = self.measures(images, generator)
        if isinstance(batch, Captioned):
            for reader in self.readers:
                right = reader.to(self.device).read(again.clamp(-1, 1)) == batch.attributes
                measures |= {f"read_{name}": r.float().mean() for name, r in zip(reader.names, right.T, strict=True)}
        for name, value in measures.items():
            self.log(f"val/{name}", value, batch_size=len(images), sync_dist=True, prog_bar=name == "loss")
