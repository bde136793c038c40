"""Negative guidance of the conditions that are emerging, and of no others.

A guidance is applied to the forbidden conditions whose posterior is above a threshold. With an ``ObserverPosterior``
this is VL-DNP (Chang et al., NeurIPS 2025 workshop, arXiv 2510.26052): an observer classifies the denoised images at
some steps, and the conditions that it detects are active until the next of these steps. Conditions that are not active
cost no evaluation.

A guidance that has a posterior of its own takes ``ObserverPosterior(posterior=...)`` as its ``posterior``.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dng_lightning.errors import check_in
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.posterior import ObserverPosterior, Posterior
from dng_lightning.posterior.base import active_above


@dataclass(frozen=True)
class Adapted:
    """State of a batch: that of the posterior, and that of the guidance."""

    posterior: Any
    guidance: Any


@dataclass(frozen=True)
class AdaptiveNegative(GuidanceWrapper):
    """Applies a guidance to the conditions that are emerging.

    Attributes:
        guidance: the method that is applied.
        posterior: determines which conditions are emerging.
        threshold: least posterior of an active condition, in [0, 1]; 0 leaves the choice to the observer.

    Raises:
        SettingError: a setting is out of its range.
    """

    posterior: Posterior = ObserverPosterior()
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_in("[0, 1]", threshold=self.threshold)

    def needs(self, state: Adapted | None = None, step: Step | None = None) -> Needs:
        """What the guidance and the posterior need, of the active conditions."""
        if state is None or step is None:
            return self.guidance.needs() | self.posterior.needs()
        needs = self.guidance.needs(state.guidance, step) | self.posterior.needs(state.posterior, step)
        active = active_above(self.posterior, self.threshold, state.posterior, step)
        return needs if active is None else replace(needs, active=active)

    def start(self, x_T: Tensor, conditions: int) -> Adapted:
        """Both states."""
        return Adapted(self.posterior.start(x_T, conditions), self.guidance.start(x_T, conditions))

    def guide(self, predictions: Predictions, state: Adapted, step: Step) -> Guided:
        """The guidance away from the active conditions; its scale is 0 for images without any."""
        guided = self.guidance.guide(predictions, state.guidance, step)
        if predictions.active is None:
            return guided
        return replace(guided, scale=guided.scale * predictions.active.any(1))

    def update(
        self, state: Adapted, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Adapted:
        """Both states after the step."""
        after = step, x_t, x_s, predictions, guided
        return Adapted(self.posterior.update(state.posterior, *after), self.guidance.update(state.guidance, *after))
