"""The sampling loop over the reverse chain."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least, check_in, check_one_of
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.chain_guidance import ChainGuidance
from dng_lightning.guidance.serialization import map_settings
from dng_lightning.interfaces import Needs, Step
from dng_lightning.kernel import Kernel, Variance
from dng_lightning.posterior import Posterior, TimedPosterior
from dng_lightning.sampling.divergence import WithDivergence
from dng_lightning.sampling.noise import Probes
from dng_lightning.sampling.predictors import Predictor
from dng_lightning.sampling.recorders import Recorder
from dng_lightning.sampling.second_order import SecondOrder, extrapolation
from dng_lightning.schedule import NoiseSchedule

Method = TypeVar("Method", Guidance, Posterior)


@dataclass(frozen=True)
class Sampler:
    """Settings of the sampling loop.

    Attributes:
        steps: number of steps, in 1..T, evenly spaced over the levels.
        eta: in [0, 1]; 1 is ancestral sampling (DDPM), 0 is deterministic (DDIM). Below 1 a tracked posterior may be
            biased, with a warning.
        variance: variance of the noise at eta = 1: "beta_tilde", or the larger "beta" of the authors' release.
        clip: bound on the denoised prediction, None for none; sampler and posterior share it.
        order: 1 for DDPM, DDIM and Euler; 2 for DPM-Solver++ (2M), as an SDE at eta = 1 and an ODE at eta = 0.

    Raises:
        SettingError: a setting is out of its range.
    """

    steps: int = 100
    eta: float = 1.0
    variance: Variance = "beta_tilde"
    clip: float | None = None
    order: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps)
        check_in("[0, 1]", eta=self.eta)
        check_one_of(get_args(Variance), variance=self.variance)
        if self.variance == "beta" and self.eta != 1:
            raise SettingError("variance beta needs eta 1")
        if self.clip is not None and not self.clip > 0:
            raise SettingError(f"clip must be positive; got {self.clip}")
        check_one_of((1, 2), order=self.order)
        if self.order == 2 and self.variance == "beta":
            raise SettingError("order 2 needs variance beta_tilde")

    def chain(self, schedule: NoiseSchedule) -> list[Step]:
        """The steps from the highest noise level to the data.

        Raises:
            SettingError: there are more steps than levels.
        """
        levels = schedule.levels(self.steps)
        kernels = [Kernel(t, s, 1.0, self.variance, self.clip) for t, s in pairwise(levels)]
        sampling = kernels if self.eta == 1 else [Kernel(t, s, self.eta, clip=self.clip) for t, s in pairwise(levels)]
        factors = [extrapolation(levels, index) if self.order == 2 else 0.0 for index in range(self.steps)]
        parts = zip(range(self.steps), kernels, sampling, factors, strict=True)
        return [Step(index, self.steps, kernel, draws, factor) for index, kernel, draws, factor in parts]


@torch.no_grad()
def sample(
    predictor: Predictor,
    guidance: Guidance,
    schedule: NoiseSchedule,
    noise: Callable[[], Tensor],
    sampler: Sampler | None = None,
    recorders: Sequence[Recorder] = (),
) -> Tensor:
    """Sample images along the guided reverse chain from pure noise (Ho et al., 2020, algorithm 2).

    Args:
        predictor: gives the denoised predictions.
        guidance: combines the predictions.
        schedule: noise levels of the networks' training.
        noise: returns standard normal noise (B, ...) at each call; the chain starts from the first.
        sampler: settings of the loop; None for 100 ancestral steps.
        recorders: called at each step.

    Returns:
        x_0, (B, ...), not clamped.

    Raises:
        SettingError: there are more steps than levels, the guidance has settings for another number of forbidden
            conditions, or the predictor does not provide what it needs.
    """
    sampler, guidance = sampler or Sampler(), with_schedule(guidance, schedule)
    if isinstance(guidance, ChainGuidance):
        return guidance.sample(predictor, schedule, noise, sampler, recorders)
    predictor.check(guidance.needs(), type(guidance).__name__)
    warn_if_biased(guidance.needs(), sampler.eta)
    chain = sampler.chain(schedule)

    # Start: x_T ~ N(0, sigma_T^2 I)
    x_t = chain[0].level.sigma * noise()
    state = guidance.start(x_t, predictor.conditions)
    for recorder in recorders:
        recorder.start(x_t, predictor.conditions)
    x_0, _ = follow(chain, x_t, state, predictor, guidance, noise, recorders)
    return x_0


def follow(
    chain: Sequence[Step],
    x_t: Tensor,
    state: Any,
    predictor: Predictor,
    guidance: Guidance,
    noise: Callable[[], Tensor],
    recorders: Sequence[Recorder] = (),
) -> tuple[Tensor, Any]:
    """Take the steps of a chain, or of a part of it.

    Args:
        chain: the steps.
        x_t: images at the first step, (B, ...).
        state: state of the guidance at the first step.
        predictor: gives the denoised predictions.
        guidance: combines the predictions.
        noise: returns standard normal noise (B, ...) at each call.
        recorders: called at each step.

    Returns:
        the images after the last step, (B, ...), and the guidance's state.
    """
    predictor, second_order = WithDivergence(predictor, Probes(x_t), chain[0].eta), SecondOrder()
    recorded = reduce(or_, (recorder.needs for recorder in recorders), Needs())
    for step in chain:
        # Predict: D(x_t) and D_k(x_t)
        predictions = predictor.predict(x_t, step.level, guidance.needs(state, step) | recorded)

        # Guide: D_hat
        with full_precision(x_t):
            guided = guidance.guide(predictions, state, step)

        # Step: x_s = alpha_s D_hat + sqrt(sigma_s^2 - w^2) eps_hat + w z
        x_s = step.sampling_kernel.mean(x_t, guided.denoised, guided.renoise)
        if step.sampling_kernel.std > 0:
            z = noise()
            predictor.record_noise(predictions, step.sampling_kernel.std, z)
            x_s = x_s + step.sampling_kernel.std * z

        # Update: the guidance's state, from x_t and x_s
        with full_precision(x_t):
            state = guidance.update(state, step, x_t, x_s, predictions, guided)
            for recorder in recorders:
                recorder.record(step, x_t, x_s, predictions, guided)

        # Second order: a term of all kernels, which does not change their log ratios
        term = second_order(step, guided)
        x_t = x_s if term is None else x_s + term
    return x_t, state


def warn_if_biased(needs: Needs, eta: float) -> None:
    """Warn if a tracked posterior is biased with a sampler of this ``eta``."""
    if needs.is_biased(eta):
        warnings.warn(
            f"a posterior tracked at eta {eta:g} is biased against the class: set eta to 1, or the posterior's "
            "divergence to 1 (twice the cost of the network) where it has one",
            stacklevel=4,  # the caller of ``sample``, above its decorator
        )


def with_schedule(guidance: Method, schedule: NoiseSchedule) -> Method:
    """The guidance or posterior with each ``TimedPosterior`` resolved for the schedule."""

    def resolved(part: Any) -> Any:
        return part.with_schedule(schedule) if isinstance(part, TimedPosterior) else part

    return map_settings(guidance, resolved)


def full_precision(like: Tensor) -> torch.autocast:
    """Disable autocast, which would round a guidance's arithmetic to bf16."""
    return torch.autocast(like.device.type, enabled=False)
