"""What a network predicts, and the denoised prediction that follows from it.

With x_t = alpha x_0 + sigma eps, a network may predict eps, x0, v = alpha eps - sigma x_0 (Salimans & Ho, 2022), the
"flow" eps - x_0 (Lipman et al., 2023), or the target of EDM's preconditioning (Karras et al., 2022, equation 8).
"""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from dng_lightning.kernel import NoiseLevel

Prediction = Literal["eps", "x0", "v", "flow", "edm"]
NEEDS_SIGNAL = ("eps", "edm")  # these determine no denoised prediction at pure noise (alpha = 0)

SIGMA_DATA = 0.5  # standard deviation of the data that EDM's preconditioning assumes (Karras et al., 2022, table 1)


@overload
def preconditioning(sigma: float) -> tuple[float, float, float]: ...
@overload
def preconditioning(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
def preconditioning(sigma: Any) -> tuple[Any, Any, Any]:
    """EDM's c_skip, c_out and c_in at the noise level sigma / alpha, a number or a tensor (Karras et al., table 1)."""
    total = sigma**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, sigma * SIGMA_DATA * total**-0.5, total**-0.5


def network_input(x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction: Prediction) -> Tensor:
    """The input of the network: ``x_t``, or for "edm" c_in x_t / alpha."""
    scaled: Tensor = x_t if prediction != "edm" else x_t / alpha * preconditioning(sigma / alpha)[2]
    return scaled


def denoised_of(
    output: Tensor, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction: Prediction
) -> Tensor:
    """The denoised prediction D(x_t) of a network's output.

    Args:
        output: output of the network, (B, ...).
        x_t: noisy images (B, ...).
        alpha: signal coefficient, a number or shaped to multiply ``x_t``; above 0 for "eps" and "edm".
        sigma: noise coefficient, likewise.
        prediction: what the network predicts.
    """
    if prediction == "x0":
        return output
    if prediction == "eps":
        return x_t / alpha - sigma / alpha * output
    if prediction == "v":
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
    if prediction == "flow":
        return (x_t - sigma * output) / (alpha + sigma)
    c_skip, c_out, _ = preconditioning(sigma / alpha)
    return c_skip * (x_t / alpha) + c_out * output


def output_of(denoised: Tensor, x_t: Tensor, level: NoiseLevel, prediction: Prediction) -> Tensor:
    """The network output of a denoised prediction: the inverse of ``denoised_of``."""
    alpha, sigma = level.alpha, level.sigma
    if prediction == "x0":
        return denoised
    if prediction == "eps":
        return (x_t - alpha * denoised) / sigma
    if prediction == "v":
        return (alpha * x_t - (alpha**2 + sigma**2) * denoised) / sigma
    if prediction == "flow":
        return (x_t - (alpha + sigma) * denoised) / sigma
    c_skip, c_out, _ = preconditioning(sigma / alpha)
    return (denoised - c_skip * (x_t / alpha)) / c_out


def target_of(x_0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The training target of a network of this ``prediction``, (B, ...).

    Args:
        x_0: images, (B, ...).
        noise: standard normal, of the same shape.
        alpha: signal coefficients, shaped to multiply them.
        sigma: noise coefficients, likewise.
        prediction: what the network predicts.
    """
    if prediction in ("eps", "x0"):
        return noise if prediction == "eps" else x_0
    if prediction == "flow":
        return noise - x_0
    if prediction == "v":
        return alpha * noise - sigma * x_0
    c_skip, c_out, _ = preconditioning(sigma / alpha)
    return (x_0 - c_skip * (x_0 + sigma / alpha * noise)) / c_out


def x0_error(alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The squared error of the denoised prediction for a squared error of 1 in the network's output."""
    if prediction == "eps":
        return (sigma / alpha) ** 2
    if prediction == "v":
        return (sigma / (alpha**2 + sigma**2)) ** 2
    if prediction == "flow":
        return (sigma / (alpha + sigma)) ** 2
    return preconditioning(sigma / alpha)[1] ** 2 if prediction == "edm" else torch.ones_like(sigma)
