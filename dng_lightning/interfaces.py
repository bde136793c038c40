"""Data that predictors, posteriors, guidances and the sampler exchange at a step of the reverse chain.

Shapes: B images, K forbidden conditions, states (B, ...).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.kernel import Step
from dng_lightning.text_attention import AttentionEdit

__all__ = ["Guided", "Needs", "Predictions", "Step"]

ActiveConditions = Tensor | Callable[["Predictions"], Tensor]
"""Whether each forbidden condition is active for each image, bool (B, K); or a function of the other predictions."""


@dataclass(frozen=True)
class Needs:
    """What a guidance or a posterior needs in addition to the base prediction; ``a | b`` is the union.

    Attributes:
        negatives: predictions of the forbidden conditions.
        null: the unconditional prediction, if the base is that of a class or prompt.
        class_labels: a requested class or prompt of each image.
        classifier: a noise-conditional classifier's log p(c_k | x_t), or that and its "gradient"; None for neither.
        observer: an observer's probabilities; the number is the CFG scale of the prediction that the observer reads, 1
            for the base prediction. None for no observer.
        attention: edits the attention of the base prediction to its text; None for the network's own.
        tracks: a log ratio is tracked along the chain.
        divergence: number of probes per step for the divergence of the negatives minus the base, for samplers with
            eta < 1; 0 uses the sampler's noise as the probe, at no cost, which is not possible at eta = 0; None for no
            divergence.
        active: the forbidden conditions that are evaluated for each image; None for all.
        probe: a probe's log p(c_k | x_t), read from the features of the base prediction.
        features: name of the module inside the base network whose output is needed; None for none.
    """

    negatives: bool = False
    null: bool = False
    class_labels: bool = False
    classifier: Literal["posterior", "gradient"] | None = None
    observer: float | None = None
    attention: AttentionEdit | None = None
    tracks: bool = False
    divergence: int | None = None
    active: ActiveConditions | None = None
    probe: bool = False
    features: str | None = None

    def __or__(self, other: "Needs") -> "Needs":
        """The union; ``active``, ``features`` and ``observer`` come from the first one that sets them."""
        probes = [needs.divergence for needs in (self, other) if needs.divergence is not None]
        return Needs(
            self.negatives or other.negatives,
            self.null or other.null,
            self.class_labels or other.class_labels,
            "gradient" if "gradient" in (self.classifier, other.classifier) else self.classifier or other.classifier,
            self.observer if self.observer is not None else other.observer,
            self.attention or other.attention,
            self.tracks or other.tracks,
            max(probes, default=None),
            self.active if self.active is not None else other.active,
            self.probe or other.probe,
            self.features or other.features,
        )

    @property
    def avoids(self) -> bool:
        """Whether there must be a forbidden condition."""
        return self.negatives or self.attention is not None

    def is_biased(self, eta: float) -> bool:
        """Whether the tracked log ratio is biased at this ``eta`` of the sampler."""
        return self.tracks and ((eta == 0 and not self.divergence) or (eta < 1 and self.divergence is None))


@dataclass(frozen=True)
class Predictions:
    """Denoised predictions D(x_t) at one noise level, and the other quantities of ``Needs``.

    Attributes:
        denoised: the base prediction, (B, ...): unconditional, or that of the class or prompt.
        negatives: predictions of the K forbidden conditions, (B, K, ...), equal to the base where they are not active.
        null: the unconditional prediction, (B, ...).
        log_posterior: a classifier's log p(c_k | x_t), (B, K).
        class_log_posterior: the classifier's log probability of each image's requested class, (B, 1).
        gradient: gradient of ``log_posterior`` with respect to x_t, (B, K, ...).
        class_gradient: gradient of ``class_log_posterior``, (B, ...).
        divergence: divergence of each negative minus the base with respect to x_t, (B, K).
        active: whether each forbidden condition was evaluated for each image, bool (B, K); None for all.
        observed: an observer's probability of each forbidden condition in the denoised image, (B, K).
        features: features of the base network, (B, C, H, W) or tokens (B, N, C).
        probed: a probe's log p(c_k | x_t), (B, K).
    """

    denoised: Tensor
    negatives: Tensor
    null: Tensor | None = None
    log_posterior: Tensor | None = None
    class_log_posterior: Tensor | None = None
    gradient: Tensor | None = None
    class_gradient: Tensor | None = None
    divergence: Tensor | None = None
    active: Tensor | None = None
    observed: Tensor | None = None
    features: Tensor | None = None
    probed: Tensor | None = None

    @property
    def differences(self) -> Tensor:
        """Each negative minus the base, (B, K, ...)."""
        return self.negatives - self.denoised.unsqueeze(1)


NO_PREDICTIONS = Predictions(torch.empty(0), torch.empty(0))


@dataclass(frozen=True)
class Guided:
    """A guided prediction.

    Attributes:
        denoised: the guided denoised prediction, (B, ...).
        scale: factor of the push, away from the forbidden conditions or toward the class label, (B,).
        posterior: p(c_k | x_t), (B, K), for guidances that have a posterior; else None.
        renoise: denoised prediction whose eps is used for the next state (CFG++); None for ``denoised``.
        smooth: part of ``denoised`` that a second-order sampler extrapolates: the base prediction if a posterior
            scales the push; None for all of it.
    """

    denoised: Tensor
    scale: Tensor
    posterior: Tensor | None = None
    renoise: Tensor | None = None
    smooth: Tensor | None = None


def provided(prediction: Tensor | None, name: str) -> Tensor:
    """A prediction that a guidance or posterior needs; ``name`` is that of its field in ``Predictions``.

    Raises:
        SettingError: the predictor does not give it.
    """
    if prediction is None:
        raise SettingError(f"the predictions have no {name}: the predictor must provide what the guidance needs")
    return prediction


def per_image(scale: Tensor, like: Tensor) -> Tensor:
    """``scale`` (B, ...) shaped to multiply ``like`` (B, ..., C, H, W) image by image."""
    return scale.view(*scale.shape, *[1] * (like.ndim - scale.ndim))
