"""Unguided sampling while the trackers of other guidances look on: what would they have said of these images?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.calibration import CalibratedTracker
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step
from dng_lightning.guidance.unguided import Unguided
from dng_lightning.schedule import NoiseSchedule

UNGUIDED = Unguided()
GATHERER = CalibratedTracker([[0.0, 1.0, 0.0]])  # its points are of no account: only evidence is asked of it


@dataclass(frozen=True)
class Watching(Guidance):
    """Gives the unguided images, bit for bit.

    The divergence is estimated once, with the most probes that one of them asks for. At eta = 0 one that asks for no
    probes goes without it, as it would by itself; where the sampler's noise would have told it, it gets this better
    estimate.

    Attributes:
        guidances: those whose trackers look on, at least one. Their scale and own_push say nothing here, where no image
            is pushed.
        unguided: what the images are drawn by.
    """

    guidances: Sequence[Guidance]
    unguided: Guidance = UNGUIDED

    def on(self, schedule: NoiseSchedule) -> "Watching":
        """Each of them on the schedule."""
        return replace(self, guidances=[guidance.on(schedule) for guidance in self.guidances])

    @property
    def needs(self) -> Needs:
        """The most that one of them asks for."""
        each = [self.unguided.needs, *(guidance.needs for guidance in self.guidances)]
        return Needs(
            null=any(needs.null for needs in each),
            wanted=any(needs.wanted for needs in each),
            divergence=max(needs.divergence or 0 for needs in each),
        )

    def start(self, x_T: Tensor, classes: int) -> list[Any]:
        """What each tracker starts from."""
        return [guidance.start(x_T, classes) for guidance in self.guidances]

    def guide(self, predictions: Predictions, state: list[Any], step: Step) -> Guided:
        """The unguided prediction; the posteriors of the first guidance, then of the second, and so on, (B, W K)."""
        each = [guidance.guide(predictions, s, step) for guidance, s in zip(self.guidances, state, strict=True)]
        posterior = torch.cat([guided.posterior for guided in each if guided.posterior is not None], 1)
        return replace(self.unguided.guide(predictions, None, step), posterior=posterior)

    def observe(self, state: list[Any], step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> list[Any]:
        """What each tracker knows after the step."""

        def told(guidance: Guidance) -> Predictions:
            without = step.eta == 0 and not guidance.needs.divergence
            return replace(predictions, divergence=None) if without else predictions

        pairs = zip(self.guidances, state, strict=True)
        return [guidance.look_on(s, step, x_t, x_s, told(guidance)) for guidance, s in pairs]


@dataclass(frozen=True)
class Evidence(Guidance):
    """Unguided sampling that gathers the bare evidence for each class; in place of a posterior it shows L, (B, K)."""

    @property
    def needs(self) -> Needs:
        """The divergence too, as far as it costs nothing."""
        return Needs(divergence=0)

    def start(self, x_T: Tensor, classes: int) -> Tensor:
        """No evidence, (B, K)."""
        return GATHERER.start(len(x_T), classes, x_T.device)

    def guide(self, predictions: Predictions, state: Tensor, step: Step) -> Guided:
        """The base prediction."""
        return Guided(predictions.base, predictions.base.new_zeros(len(state)), state)

    def observe(self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Tensor:
        """The evidence with that of the step."""
        seen = predictions.base, predictions.negatives, predictions.divergence
        return GATHERER.update(state, step.transition, x_t, x_s, *seen, step.eta)
