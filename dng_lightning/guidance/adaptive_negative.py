"""Negative guidance of the conditions that are emerging, and of no others.

Any guidance, applied to those forbidden conditions alone whose posterior is above a threshold. With an
``ObserverPosterior`` that is VL-DNP (Chang et al., NeurIPS 2025 workshop, arXiv 2510.26052): an observer looks at the
denoised images at some steps, and what it sees emerging is negated until it looks again. Conditions that are not active
cost no evaluation.

A guidance that has a posterior of its own takes ``ObserverPosterior(posterior=...)`` directly.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dng_lightning.errors import check_0_to_1
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
        posterior: tells which conditions are emerging.
        threshold: least posterior of a condition that is negated, in [0, 1]; 0 is any that an observer calls active.

    Raises:
        SettingError: a setting is out of its range.
    """

    posterior: Posterior = ObserverPosterior()
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_0_to_1(threshold=self.threshold)

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
        """What the guidance makes of the active conditions; its scale is 0 where there are none."""
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
