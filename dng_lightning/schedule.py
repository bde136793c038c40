"""Noise schedules: the levels of a path from the data to noise.

Every path is x_t = alpha_t x_0 + sigma_t eps: variance preserving (DDPM), variance exploding (EDM), rectified flow. As
in Ho et al. (2020), t = 0 is the data and t = T the highest noise level. Tables are fp64.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from dng_lightning.errors import SettingError
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import NEEDS_SIGNAL, Prediction, target_of, x0_error

__all__ = ["CosineSchedule", "KarrasSchedule", "LinearSchedule", "NoiseSchedule", "RectifiedFlowSchedule"]


class NoiseSchedule:
    """Any Gaussian path, given by its levels.

    Args:
        alpha: signal coefficients of the levels 1..T, shape (T,), >= 0; only the last one may be 0.
        sigma: noise coefficients of the levels 1..T, shape (T,), > 0; alpha / sigma must decrease with t.
        timesteps: the network's time input at the levels 0..T, shape (T + 1,); None for -1..T - 1, as in DDPM.

    Raises:
        SettingError: the coefficients do not describe such a path.
    """

    def __init__(self, alpha: Tensor, sigma: Tensor, timesteps: Tensor | None = None) -> None:
        alpha, sigma = alpha.double(), sigma.double()
        if alpha.ndim != 1 or alpha.shape != sigma.shape or not alpha.numel():
            raise SettingError("a schedule needs one alpha and one sigma per level, at least one level")
        ratio = alpha / sigma
        if not bool((alpha >= 0).all() and (sigma > 0).all() and (ratio.diff() < 0).all() and sigma.isfinite().all()):
            raise SettingError("a schedule needs alpha >= 0, sigma > 0 and an alpha / sigma that decreases with t")
        one, zero = torch.ones(1, dtype=torch.double), torch.zeros(1, dtype=torch.double)
        self.alpha, self.sigma = torch.cat([one, alpha]), torch.cat([zero, sigma])
        self.timesteps = torch.arange(-1, len(alpha)) if timesteps is None else timesteps
        self._tables: dict[tuple[object, ...], Tensor] = {}

    @property
    def T(self) -> int:
        """Number of noise levels, not counting the data."""
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
        """The ``steps + 1`` levels of a sampler, evenly spaced from T to 0.

        Raises:
            SettingError: ``steps`` is not in 1..T.
        """
        if not 1 <= steps <= self.T:
            raise SettingError(f"steps must be between 1 and {self.T}, the schedule's number of levels; got {steps}")
        return [self.level(round(self.T * i / steps)) for i in range(steps, -1, -1)]

    def fraction(self, level: NoiseLevel) -> float:
        """Position of the level on the schedule, t / T: 0 at the data, 1 at the highest noise level."""
        data, noise = self.timesteps[0].item(), self.timesteps[-1].item()
        return (level.timestep - data) / (noise - data)

    def agrees(self, other: "NoiseSchedule") -> bool:
        """Whether both have the same levels, up to the rounding of single precision."""
        return self.T == other.T and all(
            torch.allclose(mine, theirs, rtol=1e-5, atol=0)
            for mine, theirs in ((self.alpha, other.alpha), (self.sigma, other.sigma))
        )

    def check(self, prediction: Prediction) -> None:
        """Check that the network's output determines a denoised prediction at the highest noise level.

        Raises:
            SettingError: the schedule ends in pure noise, where an eps prediction determines none.
        """
        if prediction in NEEDS_SIGNAL and float(self.alpha[-1]) == 0:
            raise SettingError(
                f"the schedule ends in pure noise, and prediction {prediction} has no denoised prediction at pure "
                "noise: set prediction to v, x0 or flow, or a schedule that ends before pure noise"
            )

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The alpha and sigma of the levels ``t`` (B,), on the device of ``like`` and shaped to multiply it."""
        shape = (-1, *[1] * (like.ndim - 1))
        alpha = self._look_up("alpha", lambda: self.alpha, t, like.dtype)
        sigma = self._look_up("sigma", lambda: self.sigma, t, like.dtype)
        return alpha.to(like.device).view(shape), sigma.to(like.device).view(shape)

    def add_noise(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Sample x_t from q(x_t | x_0); ``x_0`` and ``noise`` (B, ...), ``t`` (B,) in 1..T."""
        alpha, sigma = self.coefficients(t, x_0)
        return alpha * x_0 + sigma * noise

    def noised(self, x_0: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images at random levels, uniform in 1..T: x_t and the noise, (B, ...), and the levels, (B,)."""
        t = torch.randint(1, self.T + 1, (len(x_0),), device=x_0.device, generator=generator)
        noise = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
        return self.add_noise(x_0, t, noise), noise, t

    def target(self, x_0: Tensor, t: Tensor, noise: Tensor, prediction: Prediction) -> Tensor:
        """Training target of a network of this ``prediction``, (B, ...); for the arguments see ``add_noise``."""
        return target_of(x_0, noise, *self.coefficients(t, x_0), prediction)

    def timestep(self, t: Tensor) -> Tensor:
        """The network's time input at the levels ``t`` (B,)."""
        return self._look_up("timesteps", lambda: self.timesteps, t, self.timesteps.dtype)

    def min_snr_weight(self, t: Tensor, gamma: float, prediction: Prediction) -> Tensor:
        """Min-SNR-gamma weights (Hang et al., 2023, section 3.4): min(SNR, gamma) on the squared error of x_0.

        Args:
            t: levels (B,) in 1..T.
            gamma: bound on the signal-to-noise ratio alpha^2 / sigma^2, > 0.
            prediction: prediction whose squared error is weighted.

        Returns:
            (B,) float32.
        """

        def weights() -> Tensor:
            return ((self.alpha / self.sigma) ** 2).clamp(max=gamma) * x0_error(self.alpha, self.sigma, prediction)

        return self._look_up(("min-SNR", gamma, prediction), weights, t, torch.float32)

    def _look_up(self, name: object, table: Callable[[], Tensor], t: Tensor, dtype: torch.dtype) -> Tensor:
        """The entries of a fp64 ``table`` for the levels ``t`` (B,), as ``dtype``, on the device of ``t``; (B,)."""
        key = name, t.device, dtype
        if key not in self._tables:  # copied once for each device; cast first, because not every device has fp64
            self._tables[key] = table().to(dtype).to(t.device)
        return self._tables[key][t]


class LinearSchedule(NoiseSchedule):
    """DDPM's variance-preserving schedule with linear beta (Ho et al., 2020, section 4).

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
        shift: the paper's s, which prevents very small first betas; >= 0.
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

    Train its networks with ``prediction: edm``, which scales their input.

    Args:
        steps: number of levels T.
        sigma_min: sigma of level 1, > 0.
        sigma_max: sigma of level T, > sigma_min.
        rho: > 0; larger values put more levels close to the data.
    """

    def __init__(self, steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if steps < 1 or not 0 < sigma_min < sigma_max < math.inf or not 0 < rho < math.inf:
            raise SettingError("a Karras schedule needs steps >= 1, 0 < sigma_min < sigma_max and rho > 0")
        roots = torch.tensor([sigma_max, sigma_min], dtype=torch.double) ** (1 / rho)
        ramp = torch.arange(steps - 1, -1, -1, dtype=torch.double) / max(steps - 1, 1)  # a single level has sigma_max
        super().__init__(torch.ones(steps), torch.lerp(roots[0], roots[1], ramp) ** rho)


class RectifiedFlowSchedule(NoiseSchedule):
    """The straight path x_t = (1 - u) x_0 + u eps, evenly spaced in u (Liu et al., 2023; Lipman et al., 2023).

    Args:
        steps: number of levels T.
        u_max: u of level T, in (0, 1]; 1 is pure noise, where eps predictions determine no denoised prediction.
    """

    def __init__(self, steps: int = 1000, u_max: float = 1.0) -> None:
        if steps < 1 or not 0 < u_max <= 1:
            raise SettingError("a rectified flow needs steps >= 1 and 0 < u_max <= 1")
        u = u_max * torch.arange(1, steps + 1, dtype=torch.double) / steps
        super().__init__(1 - u, u)
