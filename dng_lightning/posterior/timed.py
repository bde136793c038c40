"""Tracked posterior by two times of the chain (Koulischer et al., NeurIPS 2025, arXiv 2506.06085).

Feedback Guidance sets the times at which a tracked posterior acts, in units of t / T, 1 for noise:

    offset      = log(p_0 / prior) / ((1 - t0) T)         without evidence, the posterior is p_0 at t0
    temperature = 2 v(t1) |offset of a step| / alpha      at t1, evidence balances the offset

with v the variance of the step's kernel and alpha the ``discrepancy``: the difference of the squared distances from x_s
to the two means in such a step, in units of the data. The paper's offset is added at each of N = 64 steps of a sampler,
ours at each of T levels of the schedule: the paper's is T / 64 of ours. The paper's temperature falls with the square
of N at one alpha; ours is that of 64 steps, whatever the number of steps of the sampler.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

import numpy as np
from torch import Tensor

from dng_lightning.errors import SettingError, check_in
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.kernel import Kernel
from dng_lightning.posterior.tracked import PosteriorFromPrior, TrackedPosterior
from dng_lightning.schedule import NoiseSchedule

STEPS = 64  # of the sampler for which the authors state the discrepancy


@dataclass(frozen=True)
class TimedPosterior(PosteriorFromPrior):
    """A ``TrackedPosterior`` whose temperature and offset follow from the times at which it acts.

    Attributes:
        t0: time at which the offset alone has raised the posterior to ``p_0``, in [0, 1).
        t1: time at which evidence begins to balance the offset, in [0, 1].
        p_0: posterior at t0, in (0, 1). Dynamic Negative Guidance has the odds p_0 / (1 - p_0) there; Feedback Guidance
            compares p_0 with the prior.
        discrepancy: difference of the squared distances in one of 64 steps that balances the offset, > 0.
        prior: see ``TrackedPosterior``, as all below; of several the greatest one comes to p_0.
        p_min: least posterior, in [0, prior].
        p_max: greatest sum of the posteriors, in [prior, 1).
        guidance_shift_weight: share of the guidance's push that counts as evidence, in [0, 1].

    Raises:
        SettingError: a setting is out of its range.
    """

    t0: float
    t1: float
    p_0: float = 0.75
    discrepancy: float = 10.0
    prior: float | Sequence[float] = 0.1
    p_min: float = 0.0
    p_max: float = 0.99
    guidance_shift_weight: float = 1.0

    def __post_init__(self) -> None:
        self.check_bounds()
        check_in("[0, 1)", t0=self.t0)
        check_in("[0, 1]", t1=self.t1, guidance_shift_weight=self.guidance_shift_weight)
        check_in("(0, 1)", p_0=self.p_0)
        check_in("(0, inf)", discrepancy=self.discrepancy)

    def with_schedule(self, schedule: NoiseSchedule) -> TrackedPosterior:
        """The posterior on the noise levels of a schedule, with the offset in nats a level."""
        steps = min(STEPS, schedule.T)
        levels = schedule.levels(steps)
        # variance of each step's kernel in units of the data: that of x_s / alpha_s
        variances = [Kernel(t, s).beta_tilde / s.alpha**2 for t, s in pairwise(levels)]
        ends = [schedule.fraction(level) for level in levels[1:]]
        variance = float(np.interp(self.t1, ends[::-1], variances[::-1]))
        offset = math.log(self.p_0 / max(self.priors)) / ((1 - self.t0) * schedule.T)
        of_a_step = abs(offset) * schedule.T / steps
        return TrackedPosterior(
            self.prior,
            temperature=2 * variance * of_a_step / (self.discrepancy * (STEPS / steps) ** 2),
            offset=offset,
            p_min=self.p_min,
            p_max=self.p_max,
            guidance_shift_weight=self.guidance_shift_weight,
        )

    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> NoReturn:
        """Refuse a use without noise levels."""
        raise SettingError("TimedPosterior needs the noise levels: take with_schedule(schedule)")
