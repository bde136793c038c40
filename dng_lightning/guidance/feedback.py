"""Feedback Guidance (Koulischer, Handke, Deleu, Demeester & Ambrogioni, NeurIPS 2025, arXiv 2506.06085).

The counterpart of Dynamic Negative Guidance for a pull. If the learned conditional model is a mixture of the true one
and the unconditional one, p_learned(x | c) = (1 - pi) p(x) + pi p(x | c), then the true one's score is

    D_hat = D_null + lambda (D_+ - D_null),    lambda = R / (R - (1 - pi)),    R = p(c | x_t) / p(c | x_T)

with p(c | x_t) from any posterior: the pull is weak (lambda near 1) for an image that shows its class, and strong for
one that does not. The hybrids of the paper add a constant: lambda + scale - 1 at all noise levels (classifier-free
guidance) or in an interval of them (limited interval).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.classifier_free import PositiveGuidance
from dng_lightning.guidance.limited_interval import check_interval, inside
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, per_image, provided
from dng_lightning.posterior import Posterior, TrackedPosterior


@dataclass(frozen=True)
class Fed:
    """State of a batch: the posterior's state, and log p(c | x_T), (B, 1), from the first step on."""

    posterior: Any
    log_prior: Tensor | None = None


@dataclass(frozen=True)
class FeedbackGuidance(PositiveGuidance):
    """Pulls an image toward its class or prompt, the more the lower the posterior.

    For ancestral sampling: no divergence is computed, without which a tracked ratio is biased at eta < 1. The authors
    accept the bias, with other times.

    Attributes:
        pi: share of the true conditional model in the learned one, in (0, 1]; 1 is the learned model itself.
        posterior: of the class or prompt. The authors' bound of 3 on log R is a ``p_max`` of e^3 times the prior.
        max_scale: greatest total scale, > 1.
        scale: scale of the added classifier-free guidance, >= 1; 1 adds none.
        low: noise level sigma / alpha down to which it is added, >= 0.
        high: noise level sigma / alpha up to which it is added, > low.

    Raises:
        SettingError: a setting is out of its range.
    """

    pi: float = 0.999
    posterior: Posterior = TrackedPosterior(prior=0.01, p_min=1.11e-5, p_max=0.2)
    max_scale: float = 10.0
    scale: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        needs = self.posterior.needs()
        if needs.observer is not None or needs.probe:
            which = "a probe" if needs.probe else "an observer"
            raise SettingError(f"FeedbackGuidance needs a posterior of its class: {which} looks for forbidden ones")
        if not 1 <= self.scale < math.inf:
            raise SettingError(f"scale of FeedbackGuidance must be at least 1 and finite; got {self.scale}")
        if not self.scale < self.max_scale < math.inf:
            raise SettingError(f"max_scale must be above scale {self.scale:g} and finite; got {self.max_scale}")
        if not 1 / self._greatest <= self.pi <= 1:  # with no evidence lambda is 1 / pi
            raise SettingError(f"pi must be between {1 / self._greatest:.3g} and 1 with these scales; got {self.pi}")

    def needs(self, state: Fed | None = None, step: Step | None = None) -> Needs:
        """The predictions of the class and the unconditional one, and the needs of the posterior."""
        posterior = self.posterior.needs(state.posterior if state else None, step)
        return Needs(null=True, class_labels=True) | replace(posterior, negatives=False, divergence=None)

    def start(self, x_T: Tensor, conditions: int) -> Fed:
        """The posterior's state for one condition."""
        return Fed(self.posterior.start(x_T, 1))

    def guide(self, predictions: Predictions, state: Fed, step: Step) -> Guided:
        """The linear inter- or extrapolation of the two predictions."""
        base, null = predictions.denoised, provided(predictions.null, "null")
        log_p = self.posterior.log_prob(_of_class(predictions), state.posterior, step)
        log_ratio = log_p[:, 0] - (log_p if state.log_prior is None else state.log_prior)[:, 0]
        constant = self.scale - 1 if inside(step, self.low, self.high) else 0.0
        # (1 - pi) / R in log space: R can be so small that 1 / R overflows, and pi be 1
        shortfall = torch.exp(self._log_share - log_ratio).clamp(max=1 - 1 / self._greatest)
        scale = (1 / (1 - shortfall) + constant).to(base.dtype)
        return Guided(torch.lerp(null, base, per_image(scale, base)), scale, smooth=base)

    def update(self, state: Fed, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> Fed:
        """The posterior's state after the step."""
        own, prior = _of_class(predictions), state.log_prior
        if prior is None:
            prior = self.posterior.log_prob(own, state.posterior, step)
        return Fed(self.posterior.update(state.posterior, step, x_t, x_s, own, guided), prior)

    @property
    def _log_share(self) -> float:
        """Log (1 - pi), the share of the unconditional model in the learned one."""
        return math.log(1 - self.pi) if self.pi < 1 else -math.inf

    @property
    def _greatest(self) -> float:
        """Greatest lambda."""
        return self.max_scale - (self.scale - 1)


def _of_class(predictions: Predictions) -> Predictions:
    """The predictions with the class or prompt as the only condition, and the unconditional one as the base."""
    log_p = predictions.class_log_posterior
    return Predictions(provided(predictions.null, "null"), predictions.denoised.unsqueeze(1), log_posterior=log_p)
