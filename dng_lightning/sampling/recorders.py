"""Recorders, which record each step of a chain and do not change the images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.guidance.positive_and_negative import PositiveAndNegative
from dng_lightning.guidance.unguided import Unguided
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.kernel import NoiseLevel
from dng_lightning.posterior import Posterior


class Recorder:
    """Base class: ``sample`` calls ``start`` once and ``record`` at each step.

    Attributes:
        needs: additional needs of the predictor.
    """

    needs: Needs = Needs()

    def start(self, x_T: Tensor, conditions: int) -> None:
        """Start a chain from ``x_T`` (B, ...) with K forbidden ``conditions``."""

    def record(self, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> None:
        """Record a step from ``x_t`` to ``x_s``, which lacks the second-order term of a sampler."""


class Trajectories(Recorder):
    """Scale and posterior of the guidance along the chain.

    Attributes:
        levels: noise level of each step, (S,).
    """

    def __init__(self) -> None:
        self.start(torch.empty(0), 0)

    def start(self, x_T: Tensor, conditions: int) -> None:
        """Start a new chain."""
        self.levels: list[NoiseLevel] = []
        self._scales: list[Tensor] = []
        self._posteriors: list[Tensor] = []

    def record(self, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> None:
        """Record a step."""
        self.note(step, guided)

    def note(self, step: Step, guided: Guided) -> None:
        """Record a step before it is taken."""
        self.levels.append(step.level)
        self._scales.append(guided.scale)
        if guided.posterior is not None:
            self._posteriors.append(guided.posterior.float())

    @property
    def scale(self) -> Tensor:
        """Guidance scale at each step, (B, S)."""
        return torch.stack(self._scales, 1)

    @property
    def posterior(self) -> Tensor | None:
        """Posterior of each forbidden condition before each step, (B, S, K); None for a guidance without one."""
        return torch.stack(self._posteriors, 1) if len(self._posteriors) == len(self.levels) else None


class PassiveTracking(Recorder):
    """Tracks posteriors on images that are sampled with another guidance.

    The divergence is estimated once, with the greatest number of probes that a posterior needs. At eta = 0 a posterior
    without probes gets no divergence, as in its own guidance.

    Args:
        posteriors: at least one posterior.
        cfg_scale: scale of the classifier-free guidance of the images, which applies to all predictions of the
            posteriors, as in ``PositiveAndNegative``; 1 for none.
    """

    def __init__(self, posteriors: Sequence[Posterior], cfg_scale: float = 1.0) -> None:
        self.posteriors, self.drawn_by = list(posteriors), PositiveAndNegative(Unguided(), cfg_scale)

    @property
    def needs(self) -> Needs:  # type: ignore[override]  # an attribute of the others
        """The needs of all posteriors."""
        needs = Needs(null=self.drawn_by.cfg_scale != 1)
        for posterior in self.posteriors:
            needs = needs | posterior.needs()
        return needs

    def start(self, x_T: Tensor, conditions: int) -> None:
        """Start each posterior."""
        self.levels: list[NoiseLevel] = []
        self.states: list[Any] = [posterior.start(x_T, conditions) for posterior in self.posteriors]
        self._states: list[list[Any]] = []
        self._log_probs: list[Tensor] = []

    def record(self, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> None:
        """Record each posterior before the step, and update it."""
        predictions = self.drawn_by.sharpened(predictions)
        pairs = list(zip(self.posteriors, self.states, strict=True))
        self.levels.append(step.level)
        self._log_probs.append(torch.stack([p.log_prob(predictions, state, step) for p, state in pairs], 1))
        self._states.append(self.states)
        without = replace(predictions, divergence=None)
        self.states = [
            posterior.update(
                state,
                step,
                x_t,
                x_s,
                without if step.eta == 0 and not posterior.needs().divergence else predictions,
                guided,
            )
            for posterior, state in pairs
        ]

    @property
    def log_prob(self) -> Tensor:
        """Log p(c_k | x_t) of each posterior before each step, (B, S, W, K)."""
        return torch.stack(self._log_probs, 1)

    def state(self, number: int) -> Tensor:
        """The state of a posterior before each step, (B, S, ...), for states that are tensors."""
        return torch.stack([states[number] for states in self._states], 1)
