"""Safe Denoiser as derived in the paper (Kim et al., NeurIPS 2025, arXiv 2502.08011), with the odds of a posterior.

    D_unsafe = sum_i w_i z_i,        w_i ~ q(x_t | z_i) = N(x_t; alpha_t z_i, sigma_t^2 I)
    D_hat    = D + scale beta* (D - D_unsafe),      beta* = p(unsafe | x_t) / p(safe | x_t)

At scale 1 this is the denoiser of the safe distribution, as in Dynamic Negative Guidance; the two differ in the source
of the forbidden denoiser. D_unsafe is exact for the references; with few references it equals one of them at low noise.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.references import References
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, per_image
from dng_lightning.posterior import ClassifierPosterior, Posterior
from dng_lightning.posterior.base import odds


@dataclass(frozen=True)
class ReferenceState:
    """State of a batch: the images x_t (B, ...), the references, and the posterior's state."""

    x_t: Tensor
    references: References
    posterior: Any


@dataclass(frozen=True)
class DynamicSafeDenoiser(ReferenceGuidance):
    """Pushes the denoised prediction away from that of the references by the odds of a posterior.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided, 1 is the theory's.
        posterior: how likely it is that the image becomes forbidden.
    """

    posterior: Posterior = ClassifierPosterior()

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """What the posterior needs."""
        return self.posterior.needs(state.posterior if state else None, step)

    def start(self, x_T: Tensor, conditions: int) -> ReferenceState:  # type: ignore[override]  # its own state
        """The noise, the references, and the posterior's start."""
        return ReferenceState(x_T, super().start(x_T, conditions), self.posterior.start(x_T, conditions))

    def guide(self, predictions: Predictions, state: ReferenceState, step: Step) -> Guided:
        """The denoised prediction and the push scaled by the odds."""
        log_p = self.posterior.log_prob(predictions, state.posterior, step)
        denoised = step.kernel.clipped(predictions.denoised)
        scale = (self.scale * odds(log_p).sum(1)).to(denoised.dtype)
        push = per_image(scale, denoised) * (denoised - unsafe(state.x_t, state.references, step))
        return Guided(predictions.denoised + push, scale, log_p.exp(), smooth=predictions.denoised)

    def update(
        self, state: ReferenceState, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> ReferenceState:
        """The image and the posterior's state after the step."""
        posterior = self.posterior.update(state.posterior, step, x_t, x_s, predictions, guided)
        return ReferenceState(x_s, state.references, posterior)


def unsafe(x_t: Tensor, references: References, step: Step) -> Tensor:
    """D_unsafe, the references' own denoised prediction of ``x_t``, (B, ...)."""
    level = step.level
    square = References(level.alpha * references.images).distances(x_t).square()
    weights = (-square / (2 * level.sigma**2)).softmax(1)
    return (weights @ references.images.flatten(1)).view_as(x_t)
