"""Safe Denoiser (Kim et al., NeurIPS 2025, arXiv 2502.08011) as released: less of what the near references show.

    k_i  = exp(-||D - z_i||^2 / (2 bandwidth^2))
    D   <- D - scale sum_i k_i z_i / sum_i k_i,        where sum_i k_i > threshold

Their theory moves by beta* (E - E_unsafe) instead (``dynamic_safe_denoiser.py``); here the constant scale stands for
beta*, the kernel mean for E_unsafe, and the share of E itself is left out, which shrinks or inverts what is near.
Their window of noise levels is ``LimitedInterval`` around it.
"""

from dataclasses import dataclass

from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.reference_guidance import Repulsion
from dng_lightning.guidance.references import References
from dng_lightning.interfaces import per_image


@dataclass(frozen=True)
class SafeDenoiser(Repulsion):
    """Takes the kernel mean of the references off the denoised predictions that are near to them.

    Attributes:
        scale: strength of the push (their eta), >= 0; 0 is unguided. Theirs is 0.33 for nudity.
        bandwidth: of the kernel, > 0, in the images' own units; None for the one at which the kernel is 0.05 at the
            mean square distance of the references' 4th to 6th neighbours (5.3 for the 256 zeros of MNIST).
        threshold: least sum of the kernels for a push, >= 0; None for one that 95 % of the references would reach
            by the others alone.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 0.33
    bandwidth: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bandwidth is not None and not 0 < self.bandwidth < float("inf"):
            raise SettingError(f"bandwidth must be positive and finite, or null; got {self.bandwidth}")
        check_at_least_0(threshold=self.threshold or 0.0)

    def push(self, denoised: Tensor, references: References) -> Tensor:
        """Less the kernel mean, where the kernels' sum is above the threshold, (B, C, H, W)."""
        gamma = references.gamma if self.bandwidth is None else 1 / (2 * self.bandwidth**2)
        log_kernel = -gamma * references.distances(denoised).square()
        threshold = references.reached(gamma) if self.threshold is None else self.threshold
        near = log_kernel.exp().sum(1) > threshold
        mean = (log_kernel.softmax(1) @ references.images.flatten(1)).view_as(denoised)
        return -per_image(near.to(mean.dtype), mean) * mean
