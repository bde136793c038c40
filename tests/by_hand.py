"""Steps and predictions made by hand, for tests of one guidance or one posterior at a time."""

from dataclasses import replace
from typing import Any

import torch
from mixture import BatchNoise, GaussianMixture, across
from torch import Tensor

from dng_lightning.guidance import Guidance
from dng_lightning.interfaces import Predictions, Step
from dng_lightning.kernel import Kernel, NoiseLevel, Variance
from dng_lightning.parametrization import denoised_of, output_of
from dng_lightning.sampling import Sampler
from dng_lightning.schedule import LinearSchedule, NoiseSchedule

LINEAR = LinearSchedule()
MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
FOUR = GaussianMixture(LINEAR, MEANS, [0.2, 0.3, 0.4, 0.5])
IN_64_D = GaussianMixture(LINEAR, across(MEANS, 64), 0.3)


def step_at(
    t: int = 500,
    s: int = 490,
    index: int = 0,
    count: int = 10,
    kind: Variance = "beta_tilde",
    schedule: NoiseSchedule = LINEAR,
) -> Step:
    """An ancestral step between two levels of a schedule."""
    kernel = Kernel(schedule.level(t), schedule.level(s), kind=kind)
    return Step(index, count, kernel, kernel)


def nth_step(index: int, count: int = 10) -> Step:
    """A step of the ancestral sampler that takes ``count`` of them."""
    return Sampler(count).chain(LINEAR)[index]


def eps_of(denoised: Tensor, x_t: Tensor, level: NoiseLevel | int) -> Tensor:
    """The eps prediction that goes with a denoised one."""
    return output_of(denoised, x_t, LINEAR.level(level) if isinstance(level, int) else level, "eps")


def denoised_from(eps: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
    """The denoised prediction that goes with an eps prediction."""
    return denoised_of(eps, x_t, level.alpha, level.sigma, "eps")


def update(guidance: Guidance, state: Any, step: Step, x_t: Tensor, x_s: Tensor, given: Predictions) -> Any:
    """The guidance's state after a step that led to ``x_s``."""
    return guidance.update(state, step, x_t, x_s, given, guidance.guide(given, state, step))


def predictions(conditions: int, seed: int = 0, shape: tuple[int, ...] = (5, 3, 4, 4)) -> Predictions:
    """Random predictions with all that a guidance may ask for."""
    noise = BatchNoise(shape, seed)
    base = noise()
    differences = [0.1 * noise() for _ in range(max(conditions, 1))]
    log_p = BatchNoise((shape[0], conditions + 2), seed + 1, torch.double)().log_softmax(1)
    negatives = base.unsqueeze(1) + torch.stack(differences, 1)[:, :conditions]
    null = base + 0.1 * BatchNoise(shape, seed + 2)()
    of_conditions = log_p[:, :conditions] if conditions else None
    gradients, observed = negatives - base.unsqueeze(1), log_p[:, :conditions].exp().float()
    made = Predictions(base, negatives, null, of_conditions, log_p[:, -1:], gradients, base - null, observed=observed)
    return replace(made, probed=of_conditions)


def states(t: int) -> Tensor:
    """256 states of the plane, for the level ``t``."""
    return 1.5 * BatchNoise((256, 2), seed=t, dtype=torch.double)()


def predicted(guidance: Guidance, x_t: Tensor, t: int, forbidden: list[int], label: int | None = None) -> Predictions:
    """What the exact predictor of ``FOUR`` gives a guidance."""
    labels = None if label is None else torch.full((len(x_t),), label)
    return FOUR.predictor(guidance, forbidden, labels).predict(x_t, LINEAR.level(t), guidance.needs())


def exact_gradient(x_t: Tensor, t: int, label: int) -> Tensor:
    """Of ``FOUR``: grad log p(c | x_t) = alpha (D_c - D) / sigma^2."""
    level = LINEAR.level(t)
    difference = FOUR.denoised(x_t, level, torch.full((len(x_t),), label)) - FOUR.denoised(x_t, level)
    return level.alpha / level.sigma**2 * difference
