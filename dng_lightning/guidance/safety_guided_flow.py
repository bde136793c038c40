"""Safety-Guided Flow (M. Kim, Y.-H. Kim & Park, ICLR 2026, arXiv 2603.13300): down the kernel density of references.

With the potential sum_i exp(-gamma ||D - z_i||^2), whose negative gradient is the push:

    D <- D + scale 2 gamma sum_i exp(-gamma ||D - z_i||^2) (D - z_i)

at high noise levels: the paper's are those of a ``LimitedInterval`` with low 25. In pixel space D is a mean of all
images at these levels, far from each reference, and the push is small. The sign is that of the paper's text, repulsion;
the released code adds the gradient of the potential, which points to the references.
"""

from dataclasses import dataclass

from torch import Tensor

from dng_lightning.errors import check_in
from dng_lightning.guidance.reference_guidance import Repulsion
from dng_lightning.guidance.references import References
from dng_lightning.interfaces import per_image


@dataclass(frozen=True)
class SafetyGuidedFlow(Repulsion):
    """Pushes the denoised prediction down the kernel density of the references.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided. At 1 / (2 gamma) each reference pushes by its kernel's share
            of the distance to it (28 for the 256 zeros of MNIST).
        gamma: of the kernel, > 0, one over squared distance; None for the one at which the kernel is 0.05 at the mean
            square distance of the references' 4th to 6th neighbours (0.018 for the 256 zeros of MNIST).
        bound: greatest length of the push before the scale is applied, > 0; None for none. The release has 1 as an
            option.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.0
    gamma: float | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_in("(0, inf)", gamma=self.gamma, bound=self.bound)

    def push(self, denoised: Tensor, references: References) -> Tensor:
        """Minus the gradient of the density, (B, C, H, W)."""
        gamma, z = self.gamma or references.gamma, references.images.flatten(1)
        kernel = (-gamma * references.distances(denoised).square()).exp()
        push = 2 * gamma * (kernel.sum(1, keepdim=True) * denoised.flatten(1) - kernel @ z)
        if self.bound is not None:
            push = push * per_image((self.bound / push.norm(dim=1).clamp(min=self.bound)), push)
        return push.view_as(denoised)
