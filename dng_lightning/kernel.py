"""Noise levels, the Gaussian reverse kernels between two of them, and the steps of a chain."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

__all__ = ["Kernel", "NoiseLevel", "Step", "Variance"]

Variance = Literal["beta_tilde", "beta"]


@dataclass(frozen=True)
class NoiseLevel:
    """A point of the path x_t = alpha x_0 + sigma eps.

    Attributes:
        alpha: signal coefficient, in [0, 1]; 0 is pure noise.
        sigma: noise coefficient, >= 0; 0 is the data.
        timestep: the network's time input.
    """

    alpha: float
    sigma: float
    timestep: float

    @property
    def log_snr(self) -> float:
        """Logarithm of the signal-to-noise ratio alpha^2 / sigma^2; infinite at the data and at pure noise."""
        if self.sigma == 0:
            return math.inf
        return -math.inf if self.alpha == 0 else 2 * math.log(self.alpha / self.sigma)


@dataclass(frozen=True)
class Kernel:
    """The Gaussian reverse kernel from a level t to a cleaner level s.

        x_s = alpha_s D + sqrt(sigma_s^2 - w^2) eps + w z

    D is the denoised prediction, eps = (x_t - alpha_t D) / sigma_t the corresponding noise, z a standard normal draw,
    and w^2 = eta^2 beta_tilde. The family contains DDPM, DDIM and the ancestral sampler of a rectified flow.

    Attributes:
        level: the level t, with sigma > 0.
        next_level: the level s.
        eta: 1 is ancestral sampling, 0 is deterministic (DDIM); Song et al. (2021), equation 16.
        kind: variance of z at eta = 1: "beta_tilde", or "beta", the larger choice of Ho et al., section 3.2.
        clip: bound on the denoised prediction, None for none; sampler and posterior share it.
    """

    level: NoiseLevel
    next_level: NoiseLevel
    eta: float = 1.0
    kind: Variance = "beta_tilde"
    clip: float | None = None

    @cached_property
    def forward_variance(self) -> float:
        """Variance of q(x_t | x_s)."""
        t, s = self.level, self.next_level
        return t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2

    @cached_property
    def beta_tilde(self) -> float:
        """Variance of the posterior q(x_s | x_t, x_0); Ho et al., equation 7, for any two levels of any path."""
        return self.forward_variance * self.next_level.sigma**2 / self.level.sigma**2

    @cached_property
    def variance(self) -> float:
        """Variance w^2 of the added noise; 0 for the step to the data and at eta = 0."""
        if self.next_level.sigma == 0:
            return 0.0
        return self.forward_variance if self.kind == "beta" else self.eta**2 * self.beta_tilde

    @property
    def std(self) -> float:
        """Standard deviation w of the added noise."""
        return math.sqrt(self.variance)

    @cached_property
    def x_coef(self) -> float:
        """Factor of x_t in the mean."""
        return math.sqrt(max(self.next_level.sigma**2 - self.eta**2 * self.beta_tilde, 0.0)) / self.level.sigma

    @cached_property
    def x0_coef(self) -> float:
        """Factor of the denoised prediction in the mean, > 0."""
        return self.next_level.alpha - self.level.alpha * self.x_coef

    @property
    def span(self) -> float:
        """Number of timesteps between the two levels."""
        return self.level.timestep - self.next_level.timestep

    def clipped(self, denoised: Tensor) -> Tensor:
        """The denoised prediction within the bound."""
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

    def mean(self, x_t: Tensor, denoised: Tensor, renoise: Tensor | None = None) -> Tensor:
        """The kernel's mean, in the shape of ``denoised``.

        Args:
            x_t: state at the level t.
            denoised: denoised prediction D.
            renoise: denoised prediction whose eps replaces that of D (CFG++); None for D itself.
        """
        denoised = self.clipped(denoised)
        if renoise is None:
            return self.x_coef * x_t + self.x0_coef * denoised
        eps = x_t - self.level.alpha * renoise  # times sigma_t, by which x_coef is divided
        return self.next_level.alpha * denoised + self.x_coef * eps


@dataclass(frozen=True)
class Step:
    """A step of the reverse chain.

    Attributes:
        index: number of the step, from 0.
        count: number of steps.
        kernel: the ancestral kernel (eta = 1), from which the log ratio of a posterior is computed.
        sampling_kernel: the sampler's kernel; ``kernel`` itself at eta = 1.
        extrapolation: factor of the second-order term (``sampling.second_order``); 0 for a first-order step.
    """

    index: int
    count: int
    kernel: Kernel
    sampling_kernel: Kernel
    extrapolation: float = 0.0

    @property
    def level(self) -> NoiseLevel:
        """Noise level at the start of the step."""
        return self.kernel.level

    @property
    def next_level(self) -> NoiseLevel:
        """Noise level at the end of the step."""
        return self.kernel.next_level

    @property
    def eta(self) -> float:
        """The sampler's eta."""
        return self.sampling_kernel.eta
