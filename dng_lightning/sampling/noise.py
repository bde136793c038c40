"""Noise in which image i depends on seed i alone."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class ImageNoise:
    """Standard normal noise that depends on the seed of each image, not on batch, order, device or process.

    One generator for each image creates the noise on the CPU; the noise is then copied to the device.

    Args:
        seeds: one seed for each image, in [0, 2^32), the range of torch's generator.
        shape: shape of one image, (C, H, W).
        device: device of the returned noise.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.shape, self.device = tuple(shape), torch.device(device)

    def __call__(self) -> Tensor:
        """The next noise of every image, (B, C, H, W) fp32."""
        pinned = self.device.type == "cuda"  # else the copy waits for the device
        draws = torch.empty(len(self.generators), *self.shape, dtype=torch.float32, pin_memory=pinned)
        for image, generator in zip(draws, self.generators, strict=True):
            image.normal_(generator=generator)
        return draws.to(self.device, non_blocking=pinned)

    def take(self, images: Tensor) -> "ImageNoise":
        """The noise of some images, by their indices (N,); both objects share the generators of these images."""
        some = ImageNoise([], self.shape, self.device)
        some.generators = [self.generators[i] for i in images.tolist()]
        return some


class Probes:
    """Rademacher vectors for Hutchinson's estimate, seeded by ``x_T``, so that the sampler's noise does not change.

    Args:
        x_T: start of the chain, (B, ...).
    """

    def __init__(self, x_T: Tensor) -> None:
        self.x_T = x_T

    @cached_property
    def noise(self) -> ImageNoise:
        """Normal noise; the vectors are its signs."""
        return ImageNoise(image_seeds(self.x_T), self.x_T.shape[1:], self.x_T.device)

    def __call__(self) -> Tensor:
        """The next vector of every image, (B, ...), with entries -1 and 1."""
        return torch.where(self.noise() < 0, -1, 1).to(self.x_T.dtype)


def image_seeds(x_T: Tensor) -> list[int]:
    """A seed for each image of ``x_T`` (B, ...), computed from the bits of this image alone."""
    seeds = x_T.float().cpu().flatten(1).view(torch.int32).long().sum(1) % 2**32
    return [int(seed) for seed in seeds]
