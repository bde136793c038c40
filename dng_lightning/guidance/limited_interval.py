"""Guidance in a limited interval of noise levels (Kynkäänniemi et al., NeurIPS 2024, arXiv 2404.07724, equation 5).

A guidance acts where low < sigma / alpha <= high; elsewhere the base prediction is used. sigma / alpha is the sigma of
EDM's variance exploding path, which the paper uses; log SNR = -2 log(sigma / alpha), so that an interval is the same on
any path.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import unguided
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Guided, Needs, Predictions, Step


@dataclass(frozen=True)
class LimitedInterval(GuidanceWrapper):
    """Restricts another guidance to an interval of noise levels; a posterior is tracked at all levels.

    Outside the interval a guidance without a state needs no further network evaluations.

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
        """Inside, what the guidance needs; outside, what it needs to be updated."""
        needs = super().needs(state, step)
        if step is None or inside(step, self.low, self.high):
            return needs
        return replace(needs, attention=None) if self._is_updated(state) else Needs()

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """Inside, the guided prediction; outside, the base."""
        if inside(step, self.low, self.high):
            return self.guidance.guide(predictions, state, step)
        guided = unguided(predictions, self.identity_scale)
        if not self._is_updated(state):
            return guided
        return replace(guided, posterior=self.guidance.guide(predictions, state, step).posterior)

    def update(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> Any:
        """The guidance's state after the step."""
        if not inside(step, self.low, self.high) and not self._is_updated(state):
            return state
        return super().update(state, step, x_t, x_s, predictions, guided)

    def _is_updated(self, state: Any) -> bool:
        """Whether the guidance is updated outside the interval: it has a state or a classifier's posterior."""
        needs = self.guidance.needs()
        return state is not None or needs.classifier is not None or needs.probe


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
