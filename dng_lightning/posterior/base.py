"""Base class of the posteriors: the probability that an image becomes one of the forbidden conditions."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from dng_lightning.interfaces import NO_PREDICTIONS, ActiveConditions, Guided, Needs, Predictions, Step
from dng_lightning.kernel import NoiseLevel

LEAST_LOG_P = -1e4  # log of 0: its exponential is 0 in any precision, and sums stay finite


class Posterior(ABC):
    """p(c_k | x_t) of K forbidden conditions; a subclass is a frozen dataclass of its settings.

    Its memory of a batch is a state that is passed to its methods, so that one object serves any number of batches.

    Attributes:
        reads_predictions: ``log_prob`` depends on the predictions of the step, and is unknown before them.
    """

    reads_predictions: ClassVar[bool] = False

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """What the posterior needs at a step; without arguments, the most that it may need at any step."""
        return Needs()

    def start(self, x_T: Tensor, conditions: int) -> Any:
        """The state for a batch of images.

        Args:
            x_T: the noise that the chain starts from, (B, ...).
            conditions: number K of forbidden conditions.

        Raises:
            SettingError: the settings do not fit so many conditions.
        """
        return None

    @abstractmethod
    def log_prob(self, predictions: Predictions, state: Any, step: Step) -> Tensor:
        """Log p(c_k | x_t) at the step's level, (B, K); the probabilities sum to less than 1.

        A condition that is not ``predictions.active`` has a probability of about 0.
        """

    def update(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> Any:
        """The state after the step from ``x_t`` to ``x_s`` (B, ...) that ``guided`` led to."""
        return state

    def at_least(self, state: Any, p: Tensor, level: NoiseLevel, active: Tensor) -> Any:
        """The state with p(c_k | x) raised to at least ``p``; a posterior without a state ignores the bounds.

        Args:
            state: of this posterior.
            p: lower bounds, (B, K), in [0, 1]; 0 is none.
            level: noise level of the state.
            active: which conditions count for which image, bool (B, K).
        """
        return state


def odds(log_p: Tensor) -> Tensor:
    """p_k / (1 - sum_j p_j), (B, K) fp32, from log p (B, K)."""
    rest = -torch.expm1(log_p.logsumexp(1, keepdim=True))
    return (log_p.exp() / rest.clamp(min=torch.finfo(log_p.dtype).eps)).float()  # rounding may give 0 near p_max = 1


def at_most(log_p: Tensor, p_max: float) -> Tensor:
    """``log_p`` (B, K), scaled down where the probabilities sum to more than ``p_max``."""
    return log_p - (log_p.logsumexp(1, keepdim=True) - math.log(p_max)).clamp(min=0)


def state_dtype(device: torch.device) -> torch.dtype:
    """fp64 where the device has it, since fp32 does not resolve the odds of posteriors close to 1."""
    return torch.float32 if device.type == "mps" else torch.float64


def mask_inactive(log_p: Tensor, active: Tensor | None) -> Tensor:
    """``log_p`` (B, K), with a probability of about 0 where a condition is not active."""
    return log_p if active is None else log_p.masked_fill(~active, LEAST_LOG_P)


def active_above(posterior: Posterior, threshold: float, state: Any, step: Step | None) -> ActiveConditions | None:
    """The conditions whose posterior is at least ``threshold``; None for all, where the threshold is 0."""
    if threshold == 0 or step is None:
        return None

    def active(predictions: Predictions) -> Tensor:
        return posterior.log_prob(predictions, state, step) >= math.log(threshold)

    return active if posterior.reads_predictions else active(NO_PREDICTIONS)
