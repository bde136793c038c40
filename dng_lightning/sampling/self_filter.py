"""Rejection by the model's own posterior, without a classifier.

If p(c | x_t) is above a threshold at the end of a chain, or at earlier levels, the chain is rejected, and the image is
sampled again from the next noise of its seed. An earlier check saves the rest of the chain, but p is less certain.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least
from dng_lightning.guidance.chain_guidance import ChainGuidance, take
from dng_lightning.interfaces import Step
from dng_lightning.sampling.predictors import Predictor
from dng_lightning.sampling.recorders import Recorder
from dng_lightning.sampling.sampler import Sampler, follow
from dng_lightning.sampling.watch import PosteriorWatch, Remaining, check_chains
from dng_lightning.schedule import NoiseSchedule


@dataclass(frozen=True)
class SelfFilter(ChainGuidance):
    """Samples images again if their posterior is above a threshold.

    An image whose first chain is accepted is that of ``guidance``. Recorders get the first chain of each image.

    Attributes:
        guidance: guidance of the chains; unguided by default.
        posterior: how likely it is that a chain becomes forbidden.
        threshold: sum of the posteriors above which a chain is rejected, in (0, 1), for all checks or for each. Early
            in the chain p is near the prior: a threshold below it rejects all chains.
        levels: t / T of each check, falling, in [0, 1); 0 is the end of the chain.
        max_draws: most chains of an image, >= 1; the last is always accepted.

    Raises:
        SettingError: a setting is out of its range.
    """

    threshold: float | Sequence[float] = 0.1
    levels: Sequence[float] = (0.0,)
    max_draws: int = 10

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.levels) or not all(0 < threshold < 1 for threshold in self.thresholds):
            raise SettingError(f"threshold must be inside (0, 1), one number or one per level; got {self.threshold}")
        if not self.levels or not all(0 <= level < 1 for level in self.levels):
            raise SettingError(f"levels must be fractions of the chain in [0, 1); got {list(self.levels)}")
        if list(self.levels) != sorted(set(self.levels), reverse=True):
            raise SettingError(f"levels must decrease from check to check; got {list(self.levels)}")
        check_at_least(1, max_draws=self.max_draws)

    @property
    def thresholds(self) -> list[float]:
        """The threshold of each check."""
        if isinstance(self.threshold, int | float):
            return [float(self.threshold)] * len(self.levels)
        return list(self.threshold)

    def sample(
        self,
        predictor: Predictor,
        schedule: NoiseSchedule,
        noise: Callable[[], Tensor],
        sampler: Sampler,
        recorders: Sequence[Recorder] = (),
    ) -> Tensor:
        """See ``sampling.sample``.

        Raises:
            SettingError: also if the noise is not an ``ImageNoise``.
        """
        every = check_chains(predictor, self.needs(), noise, type(self).__name__)
        parts = split(sampler.chain(schedule), schedule, self.levels)
        pending = torch.arange(len(every.generators), device=every.device)
        x_0 = torch.empty(len(pending), *every.shape, device=every.device)
        for number in range(self.max_draws):
            # Start a chain for each pending image
            images, draws = pending, every.take(pending)
            x = parts[0][0].level.sigma * draws()
            state = self.guidance.start(x, predictor.conditions)
            watch = PosteriorWatch(self.posterior, x, predictor.conditions)
            noting = [Remaining(recorders, x, predictor.conditions)] if number == 0 else []

            # Continue from check to check; reject the chains above the threshold
            for part, threshold in zip(parts, [*self.thresholds, 1.0], strict=False):
                of_these = predictor.only(images)
                x, state = follow(part, x, state, of_these, self.guidance, draws, [watch, *noting])
                predictor.nfe += of_these.nfe
                kept = (watch.p <= threshold) | (number == self.max_draws - 1)
                chains = kept.nonzero().squeeze(1)
                images, x, state, draws = images[chains], x[chains], take(state, chains), draws.take(chains)
                watch.take(chains)
                for remaining in noting:
                    remaining.take(chains)
                if len(images) == 0:
                    break

            # The accepted chains are the images
            x_0[images] = x
            pending = pending[~torch.isin(pending, images)]
            if len(pending) == 0:
                break
        return x_0


def split(chain: Sequence[Step], schedule: NoiseSchedule, levels: Sequence[float]) -> list[Sequence[Step]]:
    """The parts of a chain up to each of the decreasing ``levels`` t / T, and the rest of the chain.

    Raises:
        SettingError: there is no step between two levels.
    """
    ends = [schedule.fraction(step.next_level) for step in chain]
    places = [sum(end >= level for end in ends) for level in levels]
    parts = [chain[a:b] for a, b in pairwise([0, *places])]
    if not all(parts):
        raise SettingError(
            f"levels {list(levels)} need a step between any two of them: set more steps, or fewer levels"
        )
    return [*parts, chain[places[-1] :]] if places[-1] < len(chain) else parts
