"""Contrastive classifier-free guidance, CCFG (Chang, Lee, Chung and Ye, ICML 2026, arXiv 2411.17077).

With d_+ = D_+ - D_null, d_k = D_k - D_null, and r^2 the sum of the squares of the differences of the eps predictions,
|d|^2 (alpha_t / sigma_t)^2,

    D_hat = D_null + scale 2 / (1 + exp(-tau r_+^2)) d_+ - scale sum_k 2 / (1 + exp(tau r_k^2)) d_k

The push fades as the two predictions separate; the method has no state. The push is never longer than 0.556 scale /
sqrt(tau) in eps, reached at tau r_k^2 = 0.739. At tau = 0 this is ``ComposableNot``; as tau grows the push vanishes
wherever the predictions differ, and the pull doubles. Without a class or prompt there is no pull. The paper has one
forbidden condition; several are summed here.
"""

from dataclasses import dataclass

import torch

from dng_lightning.errors import check_at_least
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.signed_negative import null_differences
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, per_image


@dataclass(frozen=True)
class ContrastiveCFG(Guidance):
    """Pull that grows, and push that fades, with the distance of the predictions.

    The defaults are the paper's for Stable Diffusion.

    Attributes:
        scale: strength w of the pull and of the push, >= 0; 0 is the unconditional prediction.
        tau: rate at which pull and push change with the squared difference, >= 0. The squared difference is a sum over
            the N coordinates of an image, so that an equivalent tau is proportional to 1 / N: the default, for latents
            of N = 16,384, corresponds to 4.2 at 28x28 pixels and to 1.1 at 3x32x32.
    """

    scale: float = 7.5
    tau: float = 0.2

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale, tau=self.tau)

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The forbidden predictions and the unconditional one."""
        return Needs(negatives=True, null=True)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The unconditional prediction and the scaled differences; ``Guided.scale`` sums over the conditions."""
        null, toward, away = null_differences(predictions)
        tau = self.tau * (step.level.alpha / step.level.sigma) ** 2
        pull = 2 * self.scale * torch.sigmoid(tau * toward.square().flatten(1).sum(1))
        pushes = 2 * self.scale * torch.sigmoid(-tau * away.square().flatten(2).sum(2))
        if predictions.active is not None:
            pushes = pushes * predictions.active
        denoised = null + per_image(pull, toward) * toward - (per_image(pushes, away) * away).sum(1)
        return Guided(denoised, pushes.sum(1))
