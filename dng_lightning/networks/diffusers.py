"""Denoising networks of diffusers, and the decoder of latents."""

from typing import Any

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError


class DiffusersNetwork(nn.Module):
    """Wraps a network whose forward is ``(sample, timestep, class_labels) -> object with .sample``.

    Args:
        network: for instance ``diffusers.UNet2DModel``, by class path; for a class-conditional one set its
            ``num_class_embeds`` to ``num_classes + 1``, the last being the null class.
        num_classes: number of classes; 0 for an unconditional network.
        has_null_class: whether there is an embedding of no class; without it the network gives no unconditional
            prediction, and class labels are needed.
        learned_variance: whether the second half of the output's channels is a variance, which is not used.

    Raises:
        SettingError: the network has no embedding of the null class, or of classes at all.
    """

    def __init__(
        self, network: nn.Module, num_classes: int = 0, has_null_class: bool = True, learned_variance: bool = False
    ) -> None:
        super().__init__()
        embedded = getattr(getattr(network, "config", None), "num_class_embeds", None)
        if num_classes and has_null_class and embedded is not None and embedded <= num_classes:
            raise SettingError(f"num_class_embeds is {embedded}: set it to num_classes + 1, {num_classes + 1}")
        self.network = network
        self.num_classes, self.has_null_class, self.learned_variance = num_classes, has_null_class, learned_variance

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """See ``networks.UNet.forward``."""
        if self.num_classes and class_labels is None:
            class_labels = torch.full_like(t, self.num_classes, dtype=torch.long)
        output: Tensor = self.network(x, t, class_labels=class_labels if self.num_classes else None).sample
        return output[:, : x.shape[1]] if self.learned_variance else output


class LatentDecoder(nn.Module):
    """Makes images of latents, without autocast: half precision spoils the images of some autoencoders.

    Args:
        vae: an ``AutoencoderKL`` of diffusers.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.float().eval()

    @property
    def channels(self) -> int:
        """Of the images."""
        return int(self.vae.config.out_channels)

    @property
    def pixels(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def forward(self, latents: Tensor) -> Tensor:
        """The images of ``latents`` (B, C, H, W), about [-1, 1], not clamped."""
        with torch.autocast(latents.device.type, enabled=False):
            images: Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return images.float()
