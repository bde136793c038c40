"""The temperature and the offset of a tracked posterior from two times (Koulischer et al., NeurIPS 2025).

Feedback Guidance (arXiv 2506.06085) asks when a tracker acts, time counted as t / T, 1 for noise:

    offset      = log(p_0 / prior) / ((1 - t0) T)         without evidence, the posterior is p_0 at t0
    temperature = 2 v(t1) |offset of a step| / alpha      at t1, evidence balances the offset

with v the variance of the step's kernel and alpha the ``discrepancy``: by how much the squared distances from x_s to
the two means differ in such a step, in units of the data. Their offset is added for each of N = 64 steps of a sampler,
ours for each of T levels of the schedule: theirs is T / 64 of ours. Their temperature falls with the square of N at one
alpha; ours is the one of 64 steps, whatever the sampler takes.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dng_lightning.errors import SettingError
from dng_lightning.kernel import Kernel
from dng_lightning.schedule import NoiseSchedule

STEPS = 64  # of the sampler that the authors' discrepancy belongs to


@dataclass(frozen=True)
class Timing:
    """When a tracked posterior acts.

    Attributes:
        t0: when the offset alone has brought the posterior to ``p_0``, in [0, 1).
        t1: when evidence begins to balance the offset, in [0, 1].
        p_0: that posterior, in (0, 1). Dynamic Negative Guidance has the odds p_0 / (1 - p_0) there; Feedback Guidance
            compares it with the prior.
        discrepancy: difference of squared distances that counts as evidence in one of 64 steps, > 0.

    Raises:
        SettingError: a setting is out of its range.
    """

    t0: float
    t1: float
    p_0: float = 0.75
    discrepancy: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.t0 < 1 and 0 <= self.t1 <= 1):
            raise SettingError(f"timing needs t0 in [0, 1) and t1 in [0, 1]; got t0 {self.t0}, t1 {self.t1}")
        if not 0 < self.p_0 < 1:
            raise SettingError(f"timing's p_0 must be inside (0, 1); got {self.p_0}")
        if not 0 < self.discrepancy < float("inf"):
            raise SettingError(f"timing's discrepancy must be positive and finite; got {self.discrepancy}")

    def corrections(self, prior: float, schedule: NoiseSchedule) -> tuple[float, float]:
        """Temperature, and offset in nats a level.

        Args:
            prior: where the posterior starts.
            schedule: the noise levels.
        """
        steps = min(STEPS, schedule.T)
        levels = schedule.levels(steps)
        # variance of each step's kernel in units of the data: that of x_s / alpha_s
        variances = [Kernel(t, s).beta_tilde / s.alpha**2 for t, s in pairwise(levels)]
        ends = [schedule.fraction(level) for level in levels[1:]]
        variance = float(np.interp(self.t1, ends[::-1], variances[::-1]))
        offset = math.log(self.p_0 / prior) / ((1 - self.t0) * schedule.T)
        of_a_step = abs(offset) * schedule.T / steps
        return 2 * variance * of_a_step / (self.discrepancy * (STEPS / steps) ** 2), offset
