"""DPM-Solver++ (2M), of second order, in its SDE and ODE forms (Lu et al., arXiv 2211.01095, algorithm 2).

A step of first order takes the denoised prediction for constant between two levels. The second order extrapolates it
from that of the step before, with lambda = log(alpha / sigma):

    D~ = D + h / (2 h_before) (D - D_before),        h = lambda_s - lambda_t

In a kernel with eta = 1 this is the solver's SDE form, with eta = 0 its ODE form; at first order these are the
ancestral sampler and DDIM.

What is extrapolated must be smooth along the chain. Odds of a posterior are not: they rise from 0 to their bound in a
few steps, and their extrapolation throws images far out. The push of a guidance with a posterior is taken at first
order (``Guided.smooth``). The term shifts the kernels of all conditions alike, so that the evidence of a step is that
of the kernels without it.
"""

from collections.abc import Sequence

from torch import Tensor

from dng_lightning.interfaces import Guided, Step
from dng_lightning.kernel import NoiseLevel


def extrapolation(levels: Sequence[NoiseLevel], index: int) -> float:
    """The factor h / (2 h_before) of step ``index``; 0 for the first step and for that to the data."""
    if index == 0 or levels[index + 1].sigma == 0:
        return 0.0
    before, t, s = (level.log_snr for level in levels[index - 1 : index + 2])
    return (s - t) / (2 * (t - before))  # 0 after a step from pure noise


class SecondOrder:
    """The second-order term of each step; made anew for each chain."""

    def __init__(self) -> None:
        self.before: Tensor | None = None

    def __call__(self, step: Step, guided: Guided) -> Tensor | None:
        """What is added to x_s, (B, ...); None where the step is of first order."""
        smooth = step.kernel.clipped(guided.denoised if guided.smooth is None else guided.smooth)
        before, self.before = self.before, smooth
        if before is None or step.extrapolation == 0:
            return None
        return step.sampling_kernel.x0_coef * step.extrapolation * (smooth - before)
