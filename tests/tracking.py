"""Single steps of a posterior, made by hand."""

from typing import Any

import torch
from mixture import BatchNoise
from torch import Tensor

from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.kernel import Kernel, NoiseLevel, Variance
from dng_lightning.parametrization import denoised_of
from dng_lightning.posterior import Posterior
from dng_lightning.schedule import LinearSchedule, NoiseSchedule

LINEAR = LinearSchedule()
FREE = 1e-300  # a prior so small that no evidence here reaches p_max: a tracked posterior without its bounds


def step_between(
    t: NoiseLevel | int,
    s: NoiseLevel | int,
    kind: Variance = "beta_tilde",
    eta: float = 1.0,
    clip: float | None = None,
    schedule: NoiseSchedule = LINEAR,
) -> Step:
    """A step between two levels, given by themselves or by their numbers."""
    ends = [schedule.level(level) if isinstance(level, int) else level for level in (t, s)]
    kernel = Kernel(*ends, 1.0, kind, clip)
    return Step(0, 10, kernel, kernel if eta == 1 else Kernel(*ends, eta, clip=clip))


def from_eps(step: Step, x_t: Tensor, base: Tensor, negatives: Tensor) -> Predictions:
    """The predictions that stand for eps predictions, (B, ...) and (B, K, ...), of ``x_t``."""
    at = step.level.alpha, step.level.sigma, "eps"
    return Predictions(denoised_of(base, x_t, *at), denoised_of(negatives, x_t.unsqueeze(1), *at))


def any_step(step: Step, conditions: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Predictions]:
    """x_t, x_s and predictions of 6 images of 3 x 4 x 4 that differ by a typical amount."""
    noise = BatchNoise((6, 3, 4, 4), seed=7, dtype=dtype)
    x_t, base = noise(), noise()
    negatives = torch.stack([base + 0.05 * noise() for _ in range(conditions)], 1)
    predictions = from_eps(step, x_t, base, negatives)
    return x_t, step.kernel.mean(x_t, predictions.denoised) + step.kernel.std * noise(), predictions


def no_evidence(conditions: int = 1) -> tuple[Tensor, Tensor, Predictions]:
    """x_t, x_s and predictions of one image, all of them 0."""
    x = torch.zeros(1, 2)
    return x, x, Predictions(x, torch.zeros(1, conditions, 2))


def advance(posterior: Posterior, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Any:
    """The posterior's state after a step that nothing guided."""
    unguided = Guided(predictions.denoised, predictions.denoised.new_zeros(len(x_t)))
    return posterior.update(state, step, x_t, x_s, predictions, unguided)


def start(posterior: Posterior, batch: int, conditions: int) -> Any:
    """The posterior's state for ``batch`` images."""
    return posterior.start(torch.zeros(batch, 2), conditions)
