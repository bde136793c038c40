"""GeoGuide's step away from the forbidden conditions, its length scaled by the odds of a posterior.

With Delta = sum_k odds_k (D_k - D), the push of Dynamic Negative Guidance, N numbers in an image and S steps:

    mean = mean - scale sqrt(N) / S min(sum_k odds_k, 1) Delta / ||Delta||

The push of Dynamic Negative Guidance is bounded by p_max alone, and its length depends on the distance of the
predictions; here a step is at most scale sqrt(N) / S long, and, unlike GeoGuide's, 0 for an image with a posterior of
0. A combination of Poleski et al. (arXiv 2407.12889) and Koulischer et al. (arXiv 2410.14398) that is ours.
"""

from dataclasses import dataclass
from typing import Any

from dng_lightning.guidance.dynamic_negative import DynamicNegativeGuidance
from dng_lightning.guidance.geo_guide import normalized_step
from dng_lightning.interfaces import Guided, Predictions, Step, per_image


@dataclass(frozen=True)
class DynamicGeoGuide(DynamicNegativeGuidance):
    """Dynamic Negative Guidance whose push is bounded.

    Attributes:
        scale: length of all steps together in units of sqrt(N), if each had its full length, >= 0.
        posterior: how likely it is that the image becomes forbidden.
        skip_below: see ``DynamicNegativeGuidance``.
    """

    scale: float = 0.15

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """The base prediction, such that the kernel's mean moves along the push by the bounded length."""
        base, pushed = predictions.denoised, super().guide(predictions, state, step)
        odds = pushed.scale / self.scale if self.scale else pushed.scale
        scale = self.scale * odds.clamp(max=1).to(base.dtype)
        move = per_image(scale, base) * normalized_step(pushed.denoised - base, step.count)
        return Guided(base + move / step.kernel.x0_coef, scale, pushed.posterior, smooth=base)
