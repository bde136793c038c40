"""Noise levels, noise schedules, and the Gaussian kernels between two noise levels.

Every path is x_t = alpha_t x_0 + sigma_t eps: variance preserving (DDPM), variance exploding (EDM), rectified flow. A
schedule of T levels counts them as Ho et al. (2020) do: t = 0 is the data and t = T the noisiest level. Tables are
fp64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from dng_lightning.errors import SettingError

__all__ = [
    "CosineSchedule",
    "KarrasSchedule",
    "Kernel",
    "LinearSchedule",
    "NoiseLevel",
    "NoiseSchedule",
    "RectifiedFlowSchedule",
]

Prediction = Literal["eps", "x0", "v", "flow", "edm"]
Variance = Literal["beta_tilde", "beta"]
Number = TypeVar("Number", float, Tensor)

SIGMA_DATA = 0.5  # standard deviation of the data that EDM's preconditioning assumes (Karras et al., 2022, table 1)


@dataclass(frozen=True)
class NoiseLevel:
    """A point of the path x_t = alpha x_0 + sigma eps.

    Attributes:
        alpha: signal coefficient, in [0, 1]; 0 is pure noise.
        sigma: noise coefficient, >= 0; 0 is the data.
        timestep: what the network is told.
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

    D is the denoised prediction, eps = (x_t - alpha_t D) / sigma_t the noise that goes with it, z a standard normal
    draw and w^2 = eta^2 beta_tilde. One family holds DDPM, DDIM and the ancestral sampler of a rectified flow.

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
        """Variance of the noise that is drawn; 0 for the step to the data and at eta = 0."""
        if self.next_level.sigma == 0:
            return 0.0
        return self.forward_variance if self.kind == "beta" else self.eta**2 * self.beta_tilde

    @property
    def std(self) -> float:
        """Standard deviation w of the noise that is drawn."""
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
            renoise: denoised prediction whose eps takes the place of that of D (CFG++); None for D itself.
        """
        denoised = self.clipped(denoised)
        if renoise is None:
            return self.x_coef * x_t + self.x0_coef * denoised
        eps = x_t - self.level.alpha * renoise  # times sigma_t, by which x_coef is divided
        return self.next_level.alpha * denoised + self.x_coef * eps


class NoiseSchedule:
    """Any Gaussian path, given by its levels.

    Args:
        alpha: signal coefficients of the levels 1..T, shape (T,), >= 0; only the noisiest may be 0.
        sigma: noise coefficients of the levels 1..T, shape (T,), > 0; alpha / sigma must fall with t.
        timesteps: what the network is told at the levels 0..T, shape (T + 1,); None for -1..T - 1, as DDPM's networks
            count.

    Raises:
        SettingError: the coefficients do not describe such a path.
    """

    def __init__(self, alpha: Tensor, sigma: Tensor, timesteps: Tensor | None = None) -> None:
        alpha, sigma = alpha.double(), sigma.double()
        if alpha.ndim != 1 or alpha.shape != sigma.shape or not alpha.numel():
            raise SettingError("a schedule needs one alpha and one sigma a level, at least one level")
        ratio = alpha / sigma
        if not bool((alpha >= 0).all() and (sigma > 0).all() and (ratio.diff() < 0).all() and sigma.isfinite().all()):
            raise SettingError("a schedule needs alpha >= 0, sigma > 0 and an alpha / sigma that falls with t")
        one, zero = torch.ones(1, dtype=torch.double), torch.zeros(1, dtype=torch.double)
        self.alpha, self.sigma = torch.cat([one, alpha]), torch.cat([zero, sigma])
        self.timesteps = torch.arange(-1, len(alpha)) if timesteps is None else timesteps
        self._tables: dict[tuple[object, ...], Tensor] = {}

    @property
    def T(self) -> int:
        """Number of the noisiest level."""
        return len(self.alpha) - 1

    def level(self, t: int) -> NoiseLevel:
        """The level ``t``, in 0..T.

        Raises:
            SettingError: there is no such level.
        """
        if not 0 <= t <= self.T:
            raise SettingError(f"the levels of this schedule are 0 to {self.T}; got {t}")
        return NoiseLevel(float(self.alpha[t]), float(self.sigma[t]), self.timesteps[t].item())

    def levels(self, steps: int) -> list[NoiseLevel]:
        """The ``steps + 1`` levels that a sampler visits: evenly spaced from T to 0, each once.

        Raises:
            SettingError: ``steps`` is not in 1..T.
        """
        if not 1 <= steps <= self.T:
            raise SettingError(f"steps must be between 1 and {self.T}, the schedule's number of levels; got {steps}")
        return [self.level(round(self.T * i / steps)) for i in range(steps, -1, -1)]

    def fraction(self, level: NoiseLevel) -> float:
        """The level's place on the schedule, t / T: 0 at the data, 1 at the noisiest level."""
        data, noise = self.timesteps[0].item(), self.timesteps[-1].item()
        return (level.timestep - data) / (noise - data)

    def agrees(self, other: "NoiseSchedule") -> bool:
        """Whether both have the same levels, up to the rounding of single precision."""
        return self.T == other.T and all(
            torch.allclose(mine, theirs, rtol=1e-5, atol=0)
            for mine, theirs in ((self.alpha, other.alpha), (self.sigma, other.sigma))
        )

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The alpha and sigma of the levels ``t`` (B,), on the device of ``like`` and shaped to multiply it."""
        shape = (-1, *[1] * (like.ndim - 1))
        alpha = self._look_up("alpha", lambda: self.alpha, t, like.dtype)
        sigma = self._look_up("sigma", lambda: self.sigma, t, like.dtype)
        return alpha.to(like.device).view(shape), sigma.to(like.device).view(shape)

    def add_noise(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t from q(x_t | x_0); ``x_0`` and ``noise`` (B, ...), ``t`` (B,) in 1..T."""
        alpha, sigma = self.coefficients(t, x_0)
        return alpha * x_0 + sigma * noise

    def target(self, x_0: Tensor, t: Tensor, noise: Tensor, prediction: Prediction) -> Tensor:
        """What a network of this ``prediction`` learns, (B, ...); arguments as for ``add_noise``.

        "v" is alpha eps - sigma x_0 (Salimans & Ho, 2022), "flow" is eps - x_0 (Lipman et al., 2023), and "edm" is
        what EDM's preconditioning leaves to the network (Karras et al., 2022, equation 8).
        """
        if prediction in ("eps", "x0"):
            return noise if prediction == "eps" else x_0
        if prediction == "flow":
            return noise - x_0
        alpha, sigma = self.coefficients(t, x_0)
        if prediction == "v":
            return alpha * noise - sigma * x_0
        c_skip, c_out, _ = preconditioning(sigma / alpha)
        return (x_0 - c_skip * (x_0 + sigma / alpha * noise)) / c_out

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is told at the levels ``t`` (B,)."""
        return self._look_up("timesteps", lambda: self.timesteps, t, self.timesteps.dtype)

    def min_snr_weight(self, t: Tensor, gamma: float, prediction: Prediction) -> Tensor:
        """Min-SNR-gamma weights (Hang et al., 2023, section 3.4): min(SNR, gamma) on the squared error of x_0.

        Args:
            t: levels (B,) in 1..T.
            gamma: bound on the signal-to-noise ratio alpha^2 / sigma^2, > 0.
            prediction: whose squared error is weighed.

        Returns:
            (B,) float32.
        """

        def weights() -> Tensor:
            alpha, sigma = self.alpha, self.sigma
            # squared error of x_0 for a squared error of 1 in the prediction
            of_x0 = {
                "eps": lambda: (sigma / alpha) ** 2,
                "x0": lambda: torch.ones_like(sigma),
                "v": lambda: (sigma / (alpha**2 + sigma**2)) ** 2,
                "flow": lambda: (sigma / (alpha + sigma)) ** 2,
                "edm": lambda: preconditioning(sigma / alpha)[1] ** 2,
            }[prediction]()
            return ((alpha / sigma) ** 2).clamp(max=gamma) * of_x0

        return self._look_up(("min-SNR", gamma, prediction), weights, t, torch.float32)

    def _look_up(self, name: object, table: Callable[[], Tensor], t: Tensor, dtype: torch.dtype) -> Tensor:
        """The entries of a fp64 ``table`` for the levels ``t`` (B,), as ``dtype``, on the device of ``t``; (B,)."""
        key = name, t.device, dtype
        if key not in self._tables:  # moved once a device; cast first, as not every device has fp64
            self._tables[key] = table().to(dtype).to(t.device)
        return self._tables[key][t]


def preconditioning(sigma: Number) -> tuple[Number, Number, Number]:
    """EDM's c_skip, c_out and c_in at the noise level sigma / alpha (Karras et al., 2022, table 1)."""
    total = sigma**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, sigma * SIGMA_DATA * total**-0.5, total**-0.5


def network_input(x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction: Prediction) -> Tensor:
    """What the network is shown of ``x_t``: itself, or for "edm" x_t / alpha, scaled by c_in."""
    return x_t if prediction != "edm" else x_t / alpha * preconditioning(sigma / alpha)[2]


def denoised_of(
    output: Tensor, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction: Prediction
) -> Tensor:
    """The denoised prediction D(x_t) that a network's output stands for.

    Args:
        output: of the network, (B, ...).
        x_t: noisy images (B, ...).
        alpha: signal coefficient, a number or shaped to multiply ``x_t``; above 0 for "eps" and "edm".
        sigma: noise coefficient, likewise.
        prediction: what the network predicts.
    """
    if prediction == "x0":
        return output
    if prediction == "eps":
        return (x_t - sigma * output) / alpha
    if prediction == "v":
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
    if prediction == "flow":
        return (x_t - sigma * output) / (alpha + sigma)
    c_skip, c_out, _ = preconditioning(sigma / alpha)
    return c_skip * (x_t / alpha) + c_out * output


def output_of(denoised: Tensor, x_t: Tensor, level: NoiseLevel, prediction: Prediction) -> Tensor:
    """The network output that stands for a denoised prediction: the inverse of ``denoised_of``."""
    alpha, sigma = level.alpha, level.sigma
    if prediction == "x0":
        return denoised
    if prediction == "eps":
        return (x_t - alpha * denoised) / sigma
    if prediction == "v":
        return (alpha * x_t - (alpha**2 + sigma**2) * denoised) / sigma
    if prediction == "flow":
        return (x_t - (alpha + sigma) * denoised) / sigma
    c_skip, c_out, _ = preconditioning(sigma / alpha)
    return (denoised - c_skip * (x_t / alpha)) / c_out


class LinearSchedule(NoiseSchedule):
    """DDPM's variance-preserving schedule: beta rises linearly (Ho et al., 2020, section 4).

    Args:
        steps: number of levels T.
        beta_min: beta of level 1, in (0, 1).
        beta_max: beta of level T, in (0, 1).
    """

    def __init__(self, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> None:
        if steps < 1 or not 0 < beta_min <= beta_max < 1:
            raise SettingError("a linear schedule needs steps >= 1 and 0 < beta_min <= beta_max < 1")
        beta = torch.linspace(beta_min, beta_max, steps, dtype=torch.double)
        alpha_bar = (1 - beta).cumprod(0)
        super().__init__(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


class CosineSchedule(NoiseSchedule):
    """The variance-preserving cosine schedule (Nichol & Dhariwal, 2021, equation 17), with beta at most 0.999.

    Args:
        steps: number of levels T.
        shift: their s, which keeps the first beta from being too small; >= 0.
    """

    def __init__(self, steps: int = 1000, shift: float = 0.008) -> None:
        if steps < 1 or shift < 0:
            raise SettingError("a cosine schedule needs steps >= 1 and shift >= 0")
        t = torch.arange(steps + 1, dtype=torch.double) / steps
        f = torch.cos((t + shift) / (1 + shift) * math.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        alpha_bar = (1 - beta).cumprod(0)
        super().__init__(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


class KarrasSchedule(NoiseSchedule):
    """The variance-exploding schedule of EDM, evenly spaced in sigma^(1/rho) (Karras et al., 2022, equation 5).

    Train its networks with ``prediction: edm``, which scales what they are shown.

    Args:
        steps: number of levels T.
        sigma_min: sigma of level 1, > 0.
        sigma_max: sigma of level T, > sigma_min.
        rho: the larger, the more levels are close to the data; > 0.
    """

    def __init__(self, steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if steps < 1 or not 0 < sigma_min < sigma_max < math.inf or not 0 < rho < math.inf:
            raise SettingError("a Karras schedule needs steps >= 1, 0 < sigma_min < sigma_max and rho > 0")
        roots = torch.tensor([sigma_max, sigma_min], dtype=torch.double) ** (1 / rho)
        ramp = torch.arange(steps - 1, -1, -1, dtype=torch.double) / max(steps - 1, 1)  # a single level is sigma_max
        super().__init__(torch.ones(steps), torch.lerp(roots[0], roots[1], ramp) ** rho)


class RectifiedFlowSchedule(NoiseSchedule):
    """The straight path x_t = (1 - u) x_0 + u eps, evenly spaced in u (Liu et al., 2023; Lipman et al., 2023).

    Args:
        steps: number of levels T.
        u_max: u of level T, in (0, 1]; 1 is pure noise, where networks that predict eps have no denoised prediction.
    """

    def __init__(self, steps: int = 1000, u_max: float = 1.0) -> None:
        if steps < 1 or not 0 < u_max <= 1:
            raise SettingError("a rectified flow needs steps >= 1 and 0 < u_max <= 1")
        u = u_max * torch.arange(1, steps + 1, dtype=torch.double) / steps
        super().__init__(1 - u, u)
