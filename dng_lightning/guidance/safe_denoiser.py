"""Safe Denoiser (Kim et al., NeurIPS 2025, arXiv 2502.08011) as released: subtracts the mean of near references.

    k_i  = exp(-||D - z_i||^2 / (2 bandwidth^2))
    D   <- D - scale sum_i k_i z_i / sum_i k_i,        where sum_i k_i > threshold

The paper's theory adds beta* (E - E_unsafe) instead (``dynamic_safe_denoiser.py``). The release has a constant scale in
place of beta* and the kernel mean in place of E_unsafe, and omits E, which shrinks or inverts images that are near. The
paper's window of noise levels is a ``LimitedInterval`` around this guidance.
"""

from dataclasses import dataclass

from torch import Tensor

from dng_lightning.errors import check_at_least, check_in
from dng_lightning.guidance.reference_guidance import Repulsion
from dng_lightning.guidance.references import References
from dng_lightning.interfaces import per_image


@dataclass(frozen=True)
class SafeDenoiser(Repulsion):
    """Subtracts the kernel mean of the references from the denoised predictions near them.

    Attributes:
        scale: strength of the push (eta in the paper), >= 0; 0 is unguided. The paper has 0.33 for nudity.
        bandwidth: of the kernel, > 0, an l2 distance over all numbers of an image; None for the one at which the kernel
            is 0.05 at the mean square distance of the references' 4th to 6th neighbours (5.3 for the 256 zeros of
            MNIST).
        threshold: least sum of the kernels for a push, >= 0; None for the 5 % quantile of that sum over the references
            themselves, each without its own kernel.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 0.33
    bandwidth: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_in("(0, inf)", bandwidth=self.bandwidth)
        check_at_least(0, threshold=self.threshold)

    def push(self, denoised: Tensor, references: References) -> Tensor:
        """Minus the kernel mean where the sum of the kernels is above the threshold, else 0, (B, C, H, W)."""
        gamma = references.gamma if self.bandwidth is None else 1 / (2 * self.bandwidth**2)
        log_kernel = -gamma * references.distances(denoised).square()
        threshold = references.reached(gamma) if self.threshold is None else self.threshold
        near = log_kernel.exp().sum(1) > threshold
        mean = (log_kernel.softmax(1) @ references.images.flatten(1)).view_as(denoised)
        return -per_image(near.to(mean.dtype), mean) * mean
