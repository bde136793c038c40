"""The noise schedule: x_t = alpha(t) x_0 + sigma(t) n, and the Gaussian kernels between any two of its levels.

Levels are counted as in Ho et al. (2020): t = 0 is the data and t = T the noisiest level, so a schedule of T steps has
T + 1 levels. Networks are told t - 1, as DDPM's (and diffusers') networks expect. Tables are fp64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dng_lightning.errors import SettingError

Prediction = Literal["eps", "x0", "v"]
Variance = Literal["beta_tilde", "beta"]


@dataclass(frozen=True)
class Transition:
    """The Gaussian reverse kernel N(x_s; x_coef x_t + x0_coef x0_hat, variance I) from level t to the cleaner level s.

    Attributes:
        alpha_t: signal coefficient of level t, in (0, 1].
        sigma_t: noise coefficient of level t, > 0.
        x_coef: factor of x_t in the mean.
        x0_coef: factor of x0_hat in the mean.
        variance: variance of each coordinate; 0 where the step draws no noise (the last step, and DDIM at eta = 0).
        beta_tilde: variance of q(x_s | x_t, x_0); what ``variance`` is unless the sampler asked for another one.
        span: number of levels from t to s.
        clip: bound on the size of x0_hat, or None; the same for whoever asks for a mean, sampler and posterior alike.
    """

    alpha_t: float
    sigma_t: float
    x_coef: float
    x0_coef: float
    variance: float
    beta_tilde: float
    span: int = 1
    clip: float | None = None

    @property
    def eps_coef(self) -> float:
        """Factor of eps in the mean, < 0: by how much two means differ for predictions that differ by 1 (unclipped)."""
        return -self.x0_coef * self.sigma_t / self.alpha_t

    def x0_hat(self, x_t: Tensor, eps: Tensor) -> Tensor:
        """The denoised prediction (x_t - sigma_t eps) / alpha_t, clipped if asked; shape of ``x_t``."""
        x0 = (x_t - self.sigma_t * eps) / self.alpha_t
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def mean(self, x_t: Tensor, eps: Tensor, renoise: Tensor | None = None) -> Tensor:
        """The kernel's mean given the noise prediction ``eps``; shape of ``x_t``.

        With ``renoise`` the denoised prediction goes back to level s with that noise instead of ``eps`` (CFG++).
        """
        x0 = self.x0_hat(x_t, eps)
        return (
            self.x_coef * (x_t if renoise is None else self.alpha_t * x0 + self.sigma_t * renoise) + self.x0_coef * x0
        )

    def with_x0_moved(self, eps: Tensor, by: Tensor) -> Tensor:
        """The noise prediction that stands for an x0_hat moved ``by`` that much; a clip bounds where it ends."""
        return eps - self.alpha_t / self.sigma_t * by

    def with_mean_moved(self, eps: Tensor, by: Tensor) -> Tensor:
        """The noise prediction that moves the kernel's mean ``by`` that much; a clip bounds its x0_hat."""
        return self.with_x0_moved(eps, by / self.x0_coef)


class NoiseSchedule:
    """Any Gaussian path x_t = alpha(t) x_0 + sigma(t) n: variance preserving, variance exploding, rectified flow.

    A rectified flow must stop short of t = 1, where alpha is 0 and no x_t says anything about x_0.

    Args:
        alpha: signal coefficients of the levels 1..T, shape (T,), positive.
        sigma: noise coefficients of the levels 1..T, shape (T,), positive; sigma / alpha must rise with t.

    Raises:
        SettingError: the two do not describe such a path.
    """

    def __init__(self, alpha: Tensor, sigma: Tensor) -> None:
        alpha, sigma = alpha.double(), sigma.double()
        ratio = sigma / alpha
        if alpha.ndim != 1 or alpha.shape != sigma.shape or not alpha.numel():
            raise SettingError("a schedule needs one alpha and one sigma a level, at least one level")
        if not bool((alpha > 0).all() and (sigma > 0).all() and (ratio.diff() > 0).all()):
            raise SettingError("a schedule needs alpha > 0, sigma > 0 and a sigma / alpha that rises with t")
        one, zero = torch.ones(1, dtype=torch.double), torch.zeros(1, dtype=torch.double)
        self.alpha, self.sigma = torch.cat([one, alpha]), torch.cat([zero, sigma])
        self._moved: dict[tuple[object, ...], Tensor] = {}

    @property
    def T(self) -> int:
        """Number of the noisiest level."""
        return len(self.alpha) - 1

    def agrees(self, other: "NoiseSchedule") -> bool:
        """Whether the other has the same levels, up to the rounding of another library's single precision."""
        return self.T == other.T and all(
            torch.allclose(mine, its, rtol=1e-5, atol=0)
            for mine, its in ((self.alpha, other.alpha), (self.sigma, other.sigma))
        )

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The levels' alpha and sigma, for ``t`` (B,), on the device of ``like`` and shaped to multiply it."""
        shape = (-1, *[1] * (like.ndim - 1))
        alpha = self._look_up("alpha", lambda: self.alpha, t, like.dtype)
        sigma = self._look_up("sigma", lambda: self.sigma, t, like.dtype)
        return alpha.to(like.device).view(shape), sigma.to(like.device).view(shape)

    def add_noise(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t from q(x_t | x_0); ``x_0`` and ``noise`` (B, ...), ``t`` (B,) in 1..T."""
        alpha, sigma = self.coefficients(t, x_0)
        return alpha * x_0 + sigma * noise

    def target(self, x_0: Tensor, t: Tensor, noise: Tensor, prediction: Prediction) -> Tensor:
        """What a network of this ``prediction`` learns; v = alpha eps - sigma x_0 is Salimans and Ho's (2022)."""
        alpha, sigma = self.coefficients(t, x_0)
        return {"eps": noise, "x0": x_0, "v": alpha * noise - sigma * x_0}[prediction]

    def to_eps(self, output: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """The noise prediction eps that a network's ``output`` stands for, given ``x_t`` and levels ``t`` (B,)."""
        if prediction == "eps":
            return output
        alpha, sigma = self.coefficients(t, x_t)
        if prediction == "x0":
            return (x_t - alpha * output) / sigma
        return (alpha * output + sigma * x_t) / (alpha**2 + sigma**2)

    def min_snr_weight(self, t: Tensor, gamma: float, prediction: Prediction) -> Tensor:
        """Min-SNR-gamma weights (Hang et al., 2023, section 3.4): min(SNR, gamma) on the squared error of x0.

        Args:
            t: levels (B,) in 1..T.
            gamma: bound on the signal-to-noise ratio alpha^2 / sigma^2, > 0.
            prediction: the squared error that is weighed; one of x0 is (sigma / alpha)^2 of that of eps.

        Returns:
            (B,) float32.
        """

        def weights() -> Tensor:
            signal, noise = self.alpha**2, self.sigma**2
            of_x0 = {"eps": noise / signal, "x0": torch.ones_like(noise), "v": noise / (signal + noise) ** 2}
            return (signal / noise).clamp(max=gamma) * of_x0[prediction]

        return self._look_up(("min-SNR", gamma, prediction), weights, t, torch.float32)

    def levels(self, steps: int) -> list[int]:
        """The ``steps + 1`` levels that a sampler visits: from T to 0, evenly spaced, every level once.

        Raises:
            SettingError: ``steps`` is not in 1..T.
        """
        if not 1 <= steps <= self.T:
            raise SettingError(f"steps must be between 1 and {self.T}, the schedule's number of levels; got {steps}")
        return [round(self.T * i / steps) for i in range(steps, -1, -1)]

    def transition(
        self, t: int, s: int, *, eta: float = 1.0, variance: Variance = "beta_tilde", clip: float | None = None
    ) -> Transition:
        """The reverse kernel from level ``t`` to a cleaner level ``s``, 0 <= s < t <= T.

        With q(x_t | x_s) = N(a_ts x_s, var_ts), the posterior q(x_s | x_t, x_0) has the variance
        beta_tilde = var_ts sigma_s^2 / sigma_t^2 (Ho et al., eq. 6-7, for any two levels of any path).

        Args:
            t: the level that one comes from.
            s: the level that one goes to.
            eta: 1 is ancestral sampling, 0 is DDIM; the kernel's variance is eta^2 beta_tilde (Song et al., eq. 16).
            variance: "beta_tilde", or "beta" for var_ts, the larger choice of Ho et al. section 3.2, at eta = 1.
            clip: bound on the denoised prediction, None for none.

        Raises:
            SettingError: not 0 <= s < t <= T.
        """
        if not 0 <= s < t <= self.T:
            raise SettingError(f"a step goes from a level t to a cleaner level s; got t {t}, s {s} of {self.T} levels")
        alpha_t, alpha_s = float(self.alpha[t]), float(self.alpha[s])
        sigma_t, sigma_s = float(self.sigma[t]), float(self.sigma[s])
        var_ts = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        beta_tilde = var_ts * sigma_s**2 / sigma_t**2
        x_coef = math.sqrt(max(sigma_s**2 - eta**2 * beta_tilde, 0.0)) / sigma_t
        drawn = 0.0 if s == 0 else var_ts if variance == "beta" else eta**2 * beta_tilde
        return Transition(alpha_t, sigma_t, x_coef, alpha_s - alpha_t * x_coef, drawn, beta_tilde, t - s, clip)

    def _look_up(self, name: object, table: Callable[[], Tensor], t: Tensor, dtype: torch.dtype) -> Tensor:
        """What a fp64 ``table`` has for the levels ``t`` (B,), as ``dtype``, on the device of ``t``; (B,)."""
        key = name, t.device, dtype
        if key not in self._moved:  # once a device, for it waits; cast first, as not every device has fp64
            self._moved[key] = table().to(dtype).to(t.device)
        return self._moved[key][t]


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
    """The variance-preserving cosine schedule (Nichol & Dhariwal, 2021, eq. 17), with beta at most 0.999.

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
    """The variance-exploding schedule of EDM: alpha = 1, evenly spaced in sigma^(1/rho) (Karras et al., 2022, eq. 5).

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
    """The straight path x_t = (1 - u) x_0 + u n, evenly spaced in u (Liu et al., 2023; Lipman et al., 2023).

    Args:
        steps: number of levels T.
        u_max: u of level T, in (0, 1): at u = 1 no x_t would say anything about x_0.
    """

    def __init__(self, steps: int = 1000, u_max: float = 0.999) -> None:
        if steps < 1 or not 0 < u_max < 1:
            raise SettingError("a rectified flow needs steps >= 1 and 0 < u_max < 1")
        u = u_max * torch.arange(1, steps + 1, dtype=torch.double) / steps
        super().__init__(1 - u, u)
