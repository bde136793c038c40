"""Adaptive Projected Guidance (Sadat, Hilliges & Weber, ICLR 2025, arXiv 2410.02416, algorithm 1).

Classifier-free guidance whose difference has momentum and a bounded norm, and whose component along the prediction of
the class or prompt, which oversaturates images, is reduced:

    d     = D_+ - D_null + momentum d_before                    (d_before: the d of the previous step)
    d'    = d min(1, norm_threshold / |d|)
    D_hat = D_+ + (scale - 1) (d' - (1 - eta) <d', D_+> D_+ / |D_+|^2)

The default of diffusers' guider applies this to the output of the network (usually eps) instead, and adds the full
scale to the unconditional prediction; with eta 1, no momentum and no threshold all three forms are classifier-free
guidance.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from dng_lightning.errors import SettingError, check_at_least, check_in
from dng_lightning.guidance.classifier_free import PositiveGuidance
from dng_lightning.interfaces import Guided, Predictions, Step, per_image, provided


@dataclass(frozen=True)
class AdaptiveProjectedGuidance(PositiveGuidance):
    """Pulls every image toward its class or prompt, mainly perpendicular to that prediction.

    The state is the difference d of the previous step, (B, ...).

    Attributes:
        scale: strength of the pull, >= 0; 1 is the prediction of the class or prompt, bit for bit.
        momentum: factor of the previous difference, in (-1, 1); negative in the paper.
        norm_threshold: greatest l2 norm of the difference (r in the paper), > 0; .inf for no bound.
        eta: factor of the component along the prediction, in [0, 1].
    """

    scale: float = 3.0
    momentum: float = -0.5
    norm_threshold: float = 15.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)
        check_in("(-1, 1)", momentum=self.momentum)
        if not self.norm_threshold > 0:
            raise SettingError(f"norm_threshold must be positive; got {self.norm_threshold}")
        check_in("[0, 1]", eta=self.eta)

    def start(self, x_T: Tensor, conditions: int) -> Tensor:
        """Zeros, (B, ...)."""
        return x_T.new_zeros(x_T.shape)

    def guide(self, predictions: Predictions, state: Tensor, step: Step) -> Guided:
        """The prediction of the class or prompt, and the scaled difference."""
        base = predictions.denoised
        d = self._difference(predictions, state)
        if self.norm_threshold < math.inf:
            length = d.flatten(1).norm(dim=1).clamp(min=1e-30)
            d = d * per_image((self.norm_threshold / length).clamp(max=1), d)
        direction = functional.normalize(base.flatten(1), dim=1).view_as(d)
        d = d - (1 - self.eta) * per_image((d * direction).flatten(1).sum(1), d) * direction
        return Guided(base + (self.scale - 1) * d, base.new_full((len(base),), self.scale))

    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Tensor:
        """The difference d of the step."""
        return self._difference(predictions, state)

    def _difference(self, predictions: Predictions, before: Tensor) -> Tensor:
        return predictions.denoised - provided(predictions.null, "null") + self.momentum * before
