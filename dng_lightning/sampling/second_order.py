"""DPM-Solver++ (2M), of second order, in its SDE and ODE forms (Lu et al., arXiv 2211.01095, algorithm 2).

A first-order step treats the denoised prediction as constant between two levels. A second-order step extrapolates it
from the previous step, with lambda = log(alpha / sigma):

    D~ = D + h / (2 h_before) (D - D_before),        h = lambda_s - lambda_t

With eta = 1 this is the solver's SDE form (at first order the ancestral sampler), with eta = 0 its ODE form (DDIM).

Extrapolation needs a prediction that is smooth along the chain. The odds of a posterior are not smooth: they rise from
0 to their bound within a few steps, and extrapolating them gives outliers. So the push of a guidance with a posterior
is of first order (``Guided.smooth``). The second-order term shifts the kernels of all conditions equally, so the log
ratio of a step uses the kernels without it.
"""

from collections.abc import Sequence

from torch import Tensor

from dng_lightning.interfaces import Guided, Step
from dng_lightning.kernel import NoiseLevel


def extrapolation(levels: Sequence[NoiseLevel], index: int) -> float:
    """The factor h / (2 h_before) of step ``index``; 0 for the first step and for the step to the data."""
    if index == 0 or levels[index + 1].sigma == 0:
        return 0.0
    before, t, s = (level.log_snr for level in levels[index - 1 : index + 2])
    return (s - t) / (2 * (t - before))  # 0 after a step from pure noise


class SecondOrder:
    """The second-order term of each step; each chain needs a new instance."""

    def __init__(self) -> None:
        self.before: Tensor | None = None

    def __call__(self, step: Step, guided: Guided) -> Tensor | None:
        """The term to add to x_s, (B, ...); None if the step is of first order."""
        smooth = step.kernel.clipped(guided.denoised if guided.smooth is None else guided.smooth)
        before, self.before = self.before, smooth
        if before is None or step.extrapolation == 0:
            return None
        return step.sampling_kernel.x0_coef * step.extrapolation * (smooth - before)
