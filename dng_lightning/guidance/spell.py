"""SPELL, or Shielded Diffusion (Kirchhof et al., ICML 2025, arXiv 2410.06025): balls around references.

    D <- D + scale sum_i ReLU(radius / ||D - z_i|| - 1) (D - z_i)

At scale 1 a single ball moves an image inside it to its surface. Images outside all balls do not change, which is most
images at most steps. The paper's scale is 1.6.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dng_lightning.errors import check_in
from dng_lightning.guidance.reference_guidance import Repulsion
from dng_lightning.guidance.references import References


@dataclass(frozen=True)
class ShieldedDiffusion(Repulsion):
    """Pushes the denoised prediction out of balls around the references.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided, 1 moves to the surface.
        radius: of the balls, > 0: an l2 distance over all numbers of an image. None for the 95 % quantile of the
            distance from a reference to its nearest neighbour (13.5 for the 256 zeros of MNIST).

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.6
    radius: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_in("(0, inf)", radius=self.radius)

    def push(self, denoised: Tensor, references: References) -> Tensor:
        """The push out of the balls that ``denoised`` lies in, (B, C, H, W)."""
        radius = self.radius or references.radius
        image, ball = (references.distances(denoised) < radius).nonzero(as_tuple=True)
        away = (denoised[image] - references.images[ball]).flatten(1)
        # (radius / d - 1) away, without a division by d = 0: at the centre no direction leads out
        out = (radius - away.norm(dim=1, keepdim=True)).clamp(min=0) * normalize(away, dim=1)
        return torch.zeros_like(denoised).index_add(0, image, out.view(-1, *denoised.shape[1:]))
