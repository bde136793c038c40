"""The posterior of an observer that classifies the denoised images at some steps.

An observer is a classifier of clean images, or a vision-language model (VL-DNP, Chang et al., 2025, arXiv 2510.26052).
Only the conditions that it detects are active; the others need no evaluation.

A tracked posterior has no evidence from steps at which its condition was not evaluated. If it started from its prior,
the push would come too late: on a ring of ten Gaussians, three of them forbidden (50 steps), the forbidden mass only
falls from .30 to .26, compared with .09 where all conditions are evaluated at every step. So a condition that becomes
active starts from the observer's probability, or from its tracked posterior if that is greater: .09 again, with 1.5
evaluations a step instead of 4.

An observer that is also the classifier that labels the images biases the evaluation: use another one for a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least, check_in
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, provided
from dng_lightning.posterior.base import LEAST_LOG_P, Posterior, at_most, mask_inactive

P_MAX = 0.99  # of an observer's own probabilities
SOMETHING = 1e-30  # lower bound of a new condition whose probability is 0, so that p_max is applied to it as well


@dataclass(frozen=True)
class Observed:
    """State of a batch: which conditions are active and how probable each was, (B, K); the inner posterior's state."""

    active: Tensor
    p: Tensor
    inner: Any


@dataclass(frozen=True)
class ObserverPosterior(Posterior):
    """The posterior of the conditions that an observer detects; none is active before its first observation.

    Attributes:
        posterior: tracks the active conditions, starting from the observer's probability; None for the probability of
            the observer's last observation.
        observe_steps: at which steps the observer looks: so many, evenly spaced inside the chain; or fractions of the
            chain in [0, 1), such as VL-DNP's 5, 6, 7, 9, 12, 16, 21, 27, 34 and 42 of 50.
        threshold: least probability of an active condition, in [0, 1]; 0 makes every condition active.
        observer_weight: factor of the observer's probability from which the tracked posterior starts, in [0, 1]; below
            1 for an observer that answers only yes or no.
        observer_cfg_scale: CFG scale of the prediction that the observer classifies, >= 0; 1 for none.

    Raises:
        SettingError: a setting is out of its range.
    """

    posterior: Posterior | None = None
    observe_steps: int | Sequence[float] = 20
    threshold: float = 0.1
    observer_weight: float = 1.0
    observer_cfg_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self._fractions or not all(0 <= fraction < 1 for fraction in self._fractions):
            raise SettingError(
                "observe_steps must be how many, at least 1, or fractions of the chain in [0, 1); "
                f"got {self.observe_steps}"
            )
        check_at_least(0, observer_cfg_scale=self.observer_cfg_scale)
        check_in("[0, 1]", threshold=self.threshold, observer_weight=self.observer_weight)

    @property
    def reads_predictions(self) -> bool:  # type: ignore[override]  # a class attribute of the others
        """Whether the inner posterior reads the predictions of the step."""
        return self.posterior is not None and self.posterior.reads_predictions

    def needs(self, state: Observed | None = None, step: Step | None = None) -> Needs:
        """What the inner posterior needs of the active conditions, and the observer at its steps."""
        inner = self.posterior.needs(state.inner if state else None, step) if self.posterior else Needs()
        shown = Needs(observer=self.observer_cfg_scale, null=self.observer_cfg_scale != 1)
        # For conditions that are not always active the divergence needs probes: the sampler's noise does not give it.
        inner = replace(inner, divergence=inner.divergence or None)
        if state is None or step is None:
            return inner | shown
        inner = replace(inner, active=state.active)
        return inner | shown if self._looks(step) else inner

    def start(self, x_T: Tensor, conditions: int) -> Observed:
        """No condition is active."""
        active = torch.zeros(len(x_T), conditions, dtype=torch.bool, device=x_T.device)
        inner = self.posterior.start(x_T, conditions) if self.posterior else None
        return Observed(active, torch.zeros_like(active, dtype=torch.float32), inner)

    def log_prob(self, predictions: Predictions, state: Observed, step: Step) -> Tensor:
        """The log probability of the active conditions, from the inner posterior or the observer."""
        active = _evaluated(predictions, state)
        if self.posterior is None:
            return at_most(mask_inactive(state.p.log().clamp(min=LEAST_LOG_P), active), P_MAX)
        return self.posterior.log_prob(replace(predictions, active=active), state.inner, step)

    def update(
        self, state: Observed, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Observed:
        """The inner state after the step, and the active conditions after an observation."""
        inner = state.inner
        if self.posterior:
            of_active = replace(predictions, active=_evaluated(predictions, state))
            inner = self.posterior.update(inner, step, x_t, x_s, of_active, guided)
        if not self._looks(step):
            return replace(state, inner=inner)
        p = provided(predictions.observed, "observed")
        active = p >= self.threshold
        if self.posterior:
            new = (self.observer_weight * p).clamp(min=SOMETHING) * (active & ~state.active)
            inner = self.posterior.at_least(inner, new, step.next_level, state.active)
        return Observed(active, p, inner)

    @property
    def _fractions(self) -> Sequence[float]:
        """``observe_steps`` as fractions of the chain."""
        steps = self.observe_steps
        return [(i + 1) / (steps + 1) for i in range(steps)] if isinstance(steps, int) else steps

    def _looks(self, step: Step) -> bool:
        return step.index in {round(fraction * step.count) for fraction in self._fractions}


def _evaluated(predictions: Predictions, state: Observed) -> Tensor:
    """The active conditions that were evaluated, bool (B, K)."""
    return state.active if predictions.active is None else state.active & predictions.active
