"""Guidance in a limited interval of noise levels (Kynkäänniemi et al., NeurIPS 2024, arXiv 2404.07724, eq. 5).

Some guidance where low < sigma / alpha <= high, and the base prediction elsewhere. sigma / alpha is the sigma of their
(EDM's) variance exploding path, so that an interval means the same noise on any path.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guided, Needs, Predictions, Step
from dng_lightning.guidance.wrapping import Wrapping


@dataclass(frozen=True)
class LimitedInterval(Wrapping):
    """Confines another guidance to some noise levels; its tracker goes on observing at the others.

    Where it is idle, a guidance that remembers nothing and shows no posterior is spared its evaluations.

    Attributes:
        guidance: the one that acts inside.
        low: noise level sigma / alpha above which it acts, >= 0.
        high: noise level up to which it acts, > low; .inf for all above ``low``.

    Raises:
        SettingError: there is no such interval.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)

    def asks(self, state: Any, step: Step) -> Needs:
        """Inside, what the guidance asks for; outside, what it needs to go on observing the base prediction."""
        asked = super().asks(state, step)
        if inside(step, self.low, self.high):
            return asked
        return replace(asked, attending=None) if self._looks_on else Needs(negatives=False)

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """Inside, the guided prediction; outside, the base."""
        if inside(step, self.low, self.high):
            return self.guidance.guide(predictions, state, step)
        base = predictions.base
        scale = base.new_full((len(base),), self.neutral)
        if not self._looks_on:
            return Guided(base, scale)
        return replace(self.guidance.guide(predictions, state, step), eps=base, scale=scale, renoise=None)

    def observe(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Any:
        """The guidance's state after the step, with its push or without."""
        if inside(step, self.low, self.high):
            return self.guidance.observe(state, step, x_t, x_s, predictions)
        return self.guidance.look_on(state, step, x_t, x_s, predictions) if self._looks_on else state

    @property
    def _looks_on(self) -> bool:
        """Whether there is something to do outside."""
        return self.observes or self.tracks_posterior


def inside(step: Step, low: float, high: float) -> bool:
    """Whether the step starts from a noise level sigma / alpha in (low, high]."""
    return low < step.transition.sigma_t / step.transition.alpha_t <= high


def check_interval(low: float, high: float) -> None:
    """Refuse an interval that is empty.

    Raises:
        SettingError: not 0 <= low < high.
    """
    if not 0 <= low < high:
        raise SettingError(f"an interval of noise levels needs 0 <= low < high; got low {low}, high {high}")
