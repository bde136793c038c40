"""The tracked posterior with the update of the authors' release, faults included.

The evidence is divided by beta_tilde whatever the variance of the sampler, and so is the offset. Set the sampler's
``variance`` to beta to sample as the release does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.posterior.base import mask_inactive
from dng_lightning.posterior.log_ratio import check_corrections, corrected, log_ratio
from dng_lightning.posterior.tracked import PosteriorFromPrior


@dataclass(frozen=True)
class ReleasedPosterior(PosteriorFromPrior):
    """The authors' update; the defaults are their settings for CIFAR-10.

    Attributes:
        prior: p(c_k) at pure noise, in (0, 1): one number, or one for each condition.
        temperature: factor of the evidence, >= 0.
        offset: added to the squared distances, see ``corrected``.
        p_min: least posterior, in [0, prior].
        p_max: greatest sum of the posteriors, in [prior, 1).

    Raises:
        SettingError: a setting is out of its range.
    """

    prior: float | Sequence[float] = 0.01
    temperature: float = 0.2
    offset: float = 0.0002
    p_min: float = 1e-6
    p_max: float = 0.8

    def __post_init__(self) -> None:
        self.check_bounds()
        check_corrections(self.temperature, self.offset)

    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Tensor:
        """Log p(c_k | x_s), (B, K), between p_min and p_max; unchanged where a condition is not active."""
        if step.kernel.variance == 0:
            return state
        variance, active = step.kernel.beta_tilde, predictions.active
        evidence = log_ratio(step, x_t, x_s, predictions, state, variance)
        evidence = corrected(evidence, step, self.temperature, self.offset, variance)
        log_p = self.bounded(mask_inactive(state, active) + evidence)
        return log_p if active is None else torch.where(active, log_p, state)
