"""Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105, eq. 3 to 8), and its form for class removal.

Element by element, on eps predictions as in the paper, eps being that of the base:

    d       = eps - eps_k
    mask    = min(mask_scale |d|, 1) where d < threshold, else 0
    gamma   = sum_k mask (eps_k - eps_null) + momentum_scale nu
    nu      <- momentum_decay nu + (1 - momentum_decay) gamma                       (at every step)
    eps_hat = eps_null + cfg_scale (eps - eps_null) - scale gamma                   (from step ``warmup`` on)

Differences of eps predictions are -alpha_t / sigma_t times those of denoised predictions. The paper has one scale of
7.5 for both terms and one eps_k, of a text that lists all unsafe concepts; the sum over several is ours. The adaptation
of Koulischer et al. (ICLR 2025) to an unconditional base has eps_null = eps, whatever the cfg_scale. With a class or
prompt and ``cfg_scale`` None, eps takes the place of eps_null in the same way.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least, check_in
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, provided


@dataclass(frozen=True)
class SafeLatentDiffusion(Guidance):
    """Pushes only the pixels whose difference is below a threshold, with momentum.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided, or classifier-free guidance.
        mask_scale: how fast a pixel's mask saturates with the difference (s_S in the paper), >= 0.
        threshold: pixels with a difference above it are not pushed (lambda in the paper).
        momentum_scale: factor of the momentum in the push (s_m in the paper), >= 0.
        momentum_decay: decay of the momentum (beta_m in the paper), in [0, 1).
        warmup: number of steps at the start without a push (delta in the paper), >= 0.
        cfg_scale: strength of the pull to the class or prompt, >= 0, as in the paper; None to guide the base
            prediction instead of the unconditional one.
    """

    scale: float = 1.0
    mask_scale: float = 100.0
    threshold: float = 0.04
    momentum_scale: float = 0.1
    momentum_decay: float = 0.2
    warmup: int = 0
    cfg_scale: float | None = None

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale, cfg_scale=self.cfg_scale, mask_scale=self.mask_scale)
        check_at_least(0, momentum_scale=self.momentum_scale, warmup=self.warmup)
        check_in("[0, 1)", momentum_decay=self.momentum_decay)
        if math.isnan(self.threshold):
            raise SettingError("threshold must be a number; got nan")

    def needs(self, state: Tensor | None = None, step: Step | None = None) -> Needs:
        """The forbidden predictions, and the unconditional one where there is a ``cfg_scale``."""
        return Needs(negatives=True, null=self.cfg_scale is not None)

    def start(self, x_T: Tensor, conditions: int) -> Tensor:
        """The momentum nu, (B, ...)."""
        return x_T.new_zeros(x_T.shape)

    def guide(self, predictions: Predictions, state: Tensor, step: Step) -> Guided:
        """The base prediction, or that of classifier-free guidance, and the masked and scaled push."""
        base, level = predictions.denoised, step.level
        scale = self.scale if step.index >= self.warmup else 0.0
        cfg, null = self.cfg_scale, predictions.null
        pulled = base if cfg is None else torch.lerp(provided(null, "null"), base, cfg)
        # at pure noise every eps prediction is x_t itself, and gamma is 0
        momentum = self.momentum_scale * (level.sigma / level.alpha if level.alpha else 0.0) * state
        push = scale * (self._masked(predictions, step) + momentum)
        return Guided(pulled + push, base.new_full((len(base),), scale))

    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Tensor:
        """The momentum after the step."""
        to_eps = step.level.alpha / step.level.sigma
        gamma = to_eps * self._masked(predictions, step) + self.momentum_scale * state
        return self.momentum_decay * state + (1 - self.momentum_decay) * gamma

    def _masked(self, predictions: Predictions, step: Step) -> Tensor:
        """The sum in gamma, of differences of denoised predictions, (B, ...)."""
        difference = step.level.alpha / step.level.sigma * predictions.differences
        mask = (self.mask_scale * difference.abs()).clamp(max=1) * (difference < self.threshold)
        origin = predictions.denoised if self.cfg_scale is None else provided(predictions.null, "null")
        return (mask * (origin.unsqueeze(1) - predictions.negatives)).sum(1)
