"""Adaptive Projected Guidance (Sadat, Hilliges & Weber, ICLR 2025, arXiv 2410.02416, algorithm 1).

Classifier-free guidance on the denoised predictions D = (x_t - sigma eps) / alpha, whose difference is given momentum,
shortened, and relieved of what lies along the wanted prediction, which oversaturates images:

    d     = D_+ - D_null + momentum d_before                    (d_before: the d of the step before)
    d'    = d min(1, norm_threshold / |d|)
    D_hat = D_+ + (scale - 1) (d' - (1 - eta) <d', D_+> D_+ / |D_+|^2)

diffusers' guider by default does this to the network's own output instead (eps, for most), and starts from the
unconditional prediction with the full scale; with eta 1, no momentum and no threshold all three forms are
classifier-free guidance.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from dng_lightning.errors import SettingError, check_0_to_1, check_at_least_0
from dng_lightning.guidance.base import Guided, Predictions, Step, per_image
from dng_lightning.guidance.classifier_free import TowardWanted, null_of


@dataclass(frozen=True)
class Seen:
    """What it remembers of a batch.

    Attributes:
        x: the state that the step starts from, (B, C, H, W): a prediction alone does not say what it denoises to.
        difference: d of the step before, (B, C, H, W).
    """

    x: Tensor
    difference: Tensor


@dataclass(frozen=True)
class AdaptiveProjectedGuidance(TowardWanted):
    """Draws every image toward its wanted class, across that class's prediction rather than along it.

    Attributes:
        scale: strength of the pull, >= 0; 1 is the wanted class's own prediction, bit for bit.
        momentum: share of the difference before that is added, in (-1, 1); the authors' are negative.
        norm_threshold: greatest length of the difference over an image (their r), > 0; .inf for no bound.
        eta: share of the part along the wanted prediction that is kept, in [0, 1].
    """

    scale: float = 3.0
    momentum: float = -0.5
    norm_threshold: float = 15.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)
        if not -1 < self.momentum < 1:
            raise SettingError(f"momentum must be inside (-1, 1); got {self.momentum}")
        if not self.norm_threshold > 0:
            raise SettingError(f"norm_threshold must be positive; got {self.norm_threshold}")
        check_0_to_1(eta=self.eta)

    def start(self, x_T: Tensor, classes: int) -> Seen:
        """The first state, and no momentum."""
        return Seen(x_T, x_T.new_zeros(x_T.shape))

    def guide(self, predictions: Predictions, state: Seen, step: Step) -> Guided:
        """The wanted prediction, and the scaled difference."""
        base, at = predictions.base, step.transition
        d = self._difference(predictions, state, step)
        if self.norm_threshold < math.inf:
            length = d.flatten(1).norm(dim=1).clamp(min=1e-30)
            d = d * per_image((self.norm_threshold / length).clamp(max=1), d)
        wanted = (state.x - at.sigma_t * base) / at.alpha_t
        direction = functional.normalize(wanted.flatten(1), dim=1).view_as(d)
        d = d - (1 - self.eta) * per_image((d * direction).flatten(1).sum(1), d) * direction
        eps = base - (self.scale - 1) * at.alpha_t / at.sigma_t * d
        return Guided(eps, base.new_full((len(base),), self.scale))

    def observe(self, state: Seen, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Seen:
        """The new state, and the difference of the step."""
        return Seen(x_s, self._difference(predictions, state, step))

    def _difference(self, predictions: Predictions, state: Seen, step: Step) -> Tensor:
        """The equation's d: denoised predictions differ by sigma / alpha of what noise predictions do."""
        per_noise = step.transition.sigma_t / step.transition.alpha_t
        return per_noise * (null_of(predictions) - predictions.base) + self.momentum * state.difference
