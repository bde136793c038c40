"""Sequential Monte Carlo: several weighted chains for each image, an exact removal as their number grows.

The weight of a step

    (1 - p(c | x_s)) / (1 - p(c | x_t)) * q(x_s | x_t) / q_guided(x_s | x_t)

corrects chains of any guidance, or of none, to samples of the model's images that are not forbidden. p is the
posterior, and the ratio of the kernels follows from their means, so that a chain needs no further evaluation. At some
levels the chains are resampled by their weights, and at the end one chain is sampled by weight for each image.

Del Moral, Doucet & Jasra, "Sequential Monte Carlo samplers" (2006); Skreta et al., "Feynman-Kac correctors in
diffusion" (ICML 2025, arXiv 2503.02819) for the kernels' part. Systematic resampling: Kitagawa (1996).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least
from dng_lightning.guidance.chain_guidance import ChainGuidance, take
from dng_lightning.sampling.predictors import Predictor
from dng_lightning.sampling.recorders import Recorder
from dng_lightning.sampling.sampler import Sampler, follow
from dng_lightning.sampling.watch import FirstOfEach, PosteriorWatch, check_chains
from dng_lightning.schedule import NoiseSchedule


@dataclass(frozen=True)
class Particles(ChainGuidance):
    """Samples M chains for each image, resamples them, and keeps one; the cost is M-fold.

    Recorders get the first chain of each image.

    Attributes:
        guidance: guidance of the chains; unguided by default.
        posterior: how likely it is that a chain becomes forbidden.
        particles: number M of chains of an image, >= 1; one is the guidance alone.
        resamplings: number of resamplings, evenly spaced over the chain, the last at its end; >= 1.

    Raises:
        SettingError: a setting is out of its range.
    """

    particles: int = 4
    resamplings: int = 10

    def __post_init__(self) -> None:
        check_at_least(1, particles=self.particles, resamplings=self.resamplings)

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
            SettingError: also if the noise is not an ``ImageNoise``, or the sampler is not ancestral.
        """
        name, each = type(self).__name__, self.particles
        count = len(check_chains(predictor, self.needs(), noise, name).generators)
        if sampler.eta != 1:
            raise SettingError(f"{name} needs the ancestral sampler: set eta to 1")
        chain = sampler.chain(schedule)
        if self.resamplings > len(chain):
            raise SettingError(f"{name} resamples at most once a step: set resamplings to {len(chain)} or less")

        def draws() -> Tensor:  # chain m of image i is row m * count + i
            return torch.cat([noise() for _ in range(each)])

        x = chain[0].level.sigma * draws()
        state = self.guidance.start(x, predictor.conditions)
        watch = PosteriorWatch(self.posterior, x, predictor.conditions)
        noting = FirstOfEach(recorders, x[:count], predictor.conditions)
        of_chains = predictor.only(torch.arange(count, device=x.device).repeat(each))
        before = torch.zeros_like(watch.p)  # p at the last resampling, where all weights are equal
        ends = [round(len(chain) * (i + 1) / self.resamplings) for i in range(self.resamplings)]
        for start, end in zip([0, *ends], ends, strict=False):
            x, state = follow(chain[start:end], x, state, of_chains, self.guidance, draws, [watch, noting])
            log_weight = torch.log1p(-watch.p) - torch.log1p(-before) + watch.log_unguided
            uniform = torch.special.ndtr(noise().flatten(1)[:, 0].double())
            copies = each if end < len(chain) else 1
            rows = systematic(log_weight.view(each, count), uniform, copies)
            chains = (rows * count + torch.arange(count, device=x.device)).flatten()
            x, state = x[chains], take(state, chains)
            watch.take(chains)
            before, watch.log_unguided = watch.p, torch.zeros_like(watch.p)
        predictor.nfe += of_chains.nfe
        return x


def systematic(log_weight: Tensor, uniform: Tensor, copies: int) -> Tensor:
    """Systematic resampling with one uniform number for each image.

    Args:
        log_weight: log weights of the M chains of B images, (M, B).
        uniform: uniform numbers in (0, 1), (B,).
        copies: number of chains of each image after resampling.

    Returns:
        The chosen chains, in 0..M-1, (copies, B).
    """
    shares = log_weight.softmax(0).cumsum(0).T.contiguous()
    places = (torch.arange(copies, device=uniform.device)[:, None] + uniform) / copies
    return torch.searchsorted(shares, places.T.contiguous()).clamp(max=len(log_weight) - 1).T
