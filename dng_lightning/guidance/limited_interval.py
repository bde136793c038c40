"""Guidance in a limited interval of noise levels (Kynkäänniemi et al., NeurIPS 2024, arXiv 2404.07724, equation 5).

A guidance acts where low < sigma / alpha <= high; elsewhere the base prediction is used. sigma / alpha is the sigma of
EDM's variance exploding path, which the paper uses; log SNR = -2 log(sigma / alpha), so that an interval is the same on
any path.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import unguided
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Guided, Needs, Predictions, Step


@dataclass(frozen=True)
class LimitedInterval(GuidanceWrapper):
    """Restricts another guidance to an interval of noise levels; a posterior is tracked at all levels.

    Outside the interval a guidance without a state needs no further network evaluations. The posterior of a classifier
    or probe, which has no state, is still recorded there.

    Attributes:
        guidance: the guidance inside the interval.
        low: noise level sigma / alpha above which the guidance acts, >= 0.
        high: noise level up to which the guidance acts, > low; .inf for all above ``low``.

    Raises:
        SettingError: the interval is empty.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """Inside, what the guidance needs; outside, what it needs to be updated, or for its posterior."""
        needs = super().needs(state, step)
        if step is None or inside(step, self.low, self.high):
            return needs
        needs = replace(needs, attention=None)
        if state is not None:
            return needs
        return replace(needs, active=_none_active) if self._has_posterior() else Needs()

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """Inside, the guided prediction; outside, the base."""
        if inside(step, self.low, self.high):
            return self.guidance.guide(predictions, state, step)
        guided = unguided(predictions, self.identity_scale)
        if state is None:
            if not self._has_posterior():
                return guided
            predictions = replace(predictions, active=None)  # the posterior does not depend on the evaluations
        return replace(guided, posterior=self.guidance.guide(predictions, state, step).posterior)

    def update(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> Any:
        """The guidance's state after the step."""
        if state is None and not inside(step, self.low, self.high):
            return state
        return super().update(state, step, x_t, x_s, predictions, guided)

    def _has_posterior(self) -> bool:
        """Whether the guidance has the posterior of a classifier or probe."""
        needs = self.guidance.needs()
        return needs.classifier is not None or needs.probe


def _none_active(predictions: Predictions) -> Tensor:
    """No condition is evaluated, bool (B, K); for predictions with the posterior of a probe or classifier."""
    log_p = predictions.log_posterior if predictions.probed is None else predictions.probed
    assert log_p is not None
    return torch.zeros_like(log_p, dtype=torch.bool)


def inside(step: Step, low: float, high: float) -> bool:
    """Whether the step starts from a noise level sigma / alpha in (low, high]."""
    level = step.level
    return low < (level.sigma / level.alpha if level.alpha else math.inf) <= high


def check_interval(low: float, high: float) -> None:
    """Refuse an interval that is empty.

    Raises:
        SettingError: not 0 <= low < high.
    """
    if not 0 <= low < high:
        raise SettingError(f"an interval of noise levels needs 0 <= low < high; got low {low}, high {high}")
