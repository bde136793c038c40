"""The evidence of a step: the log ratio of the kernel of a condition and the kernel of the base.

The forward process makes c - x_0 - x_1 - ... - x_T a Markov chain, so for two levels t > s

    p(c | x_s) = p(c | x_t) q(x_s | x_t, c) / q(x_s | x_t),        p(c | x_T) = prior,

whatever x_s was sampled from. Both kernels are Gaussian with variance v and the means mu_c and mu of the two denoised
predictions, so that a step costs one inner product and no network evaluation:

    log p(c | x_s) - log p(c | x_t) = <x_s - (mu_c + mu) / 2, mu_c - mu> / v

This assumes noise of the kernel's variance v. With noise of variance eta^2 v, (1 - eta^2) / 2 div(mu_c - mu) is to be
subtracted, where div is the divergence with respect to x_t: the curvature of log p(c | x) along the missing noise
(Ito's formula).

Koulischer et al., "Dynamic Negative Guidance of Diffusion Models" (ICLR 2025), section 3 and algorithm 2.
"""

import math

from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least
from dng_lightning.interfaces import Guided, Predictions, Step


def log_ratio(
    step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, like: Tensor, variance: float | None = None
) -> Tensor:
    """Log q(x_s | x_t, c_k) - log q(x_s | x_t), (B, K), in the precision of ``like``; 0 for the step to the data.

    Args:
        step: the step.
        x_t: state before the step, (B, ...).
        x_s: state after the step, (B, ...).
        predictions: with the negatives, and with their divergence at eta < 1.
        like: tensor whose dtype is the precision.
        variance: of the kernels; None for that of the step.
    """
    kernel = step.kernel
    if kernel.variance == 0:
        return like.new_zeros(predictions.negatives.shape[:2])
    x_t, x_s, base, negatives = (x.to(like.dtype) for x in (x_t, x_s, predictions.denoised, predictions.negatives))
    mean = kernel.mean(x_t, base).unsqueeze(1)
    mean_c = kernel.mean(x_t.unsqueeze(1), negatives)
    ratio = ((x_s.unsqueeze(1) - (mean_c + mean) / 2) * (mean_c - mean)).flatten(2).sum(2) / (
        variance or kernel.variance
    )
    if predictions.divergence is None:
        return ratio
    return ratio - (1 - step.eta**2) / 2 * kernel.x0_coef * predictions.divergence


def without_push(
    x_t: Tensor, x_s: Tensor, step: Step, predictions: Predictions, guided: Guided, weight: float
) -> Tensor:
    """``x_s`` (B, ...) without the share 1 - ``weight`` of the guidance's push.

    With the predictions of a trained model, the push away from a condition counts too much as evidence against it, and
    the push ends too soon.
    """
    if weight == 1:
        return x_s
    push = step.sampling_kernel.mean(x_t, guided.denoised) - step.sampling_kernel.mean(x_t, predictions.denoised)
    return x_s - (1 - weight) * push


def corrected(ratio: Tensor, step: Step, temperature: float, offset: float, variance: float | None = None) -> Tensor:
    """The evidence with the authors' corrections, for models whose predictions are not exact.

    The errors of two predictions of a trained model count as evidence against the class; temperature and offset
    compensate for that. 1 and 0 are exact for an exact model.

    Args:
        ratio: evidence, (B, K).
        step: the step.
        temperature: factor of the evidence.
        offset: added to the evidence at each timestep, in nats; with a ``variance``, to the squared distances.
        variance: divide the offset by twice this variance, as the authors' release does. A step over n levels has about
            n times the variance of a step over one, so it adds n^2 offset / (2 variance): either form sums to about the
            same on any grid (3 % more at 250 of 1,000 levels, 19 % more at 50).
    """
    span = step.kernel.span
    return temperature * ratio + (span * offset if variance is None else span**2 * offset / (2 * variance))


def check_corrections(temperature: float, offset: float) -> None:
    """Refuse a temperature below 0, or settings that are not finite."""
    check_at_least(0, temperature=temperature)
    if not math.isfinite(offset):
        raise SettingError(f"offset must be finite; got {offset}")
