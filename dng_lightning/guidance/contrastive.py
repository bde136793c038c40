"""Contrastive classifier-free guidance, CCFG (Chang, Lee, Chung and Ye, ICML 2026, arXiv 2411.17077).

With D_+ = eps_+ - eps_null, D_k = eps_k - eps_null and r^2 the sum of the squares of a difference's coordinates,

    eps_hat = eps_null + scale 2 / (1 + exp(-tau r_+^2)) D_+ - scale sum_k 2 / (1 + exp(tau r_k^2)) D_k

What repels fades as the two predictions separate; it needs no memory. The push is never longer than
0.556 scale / sqrt(tau), reached at tau r_k^2 = 0.739. At tau = 0 this is the signed form with one scale for both signs
(``composable_not.py``); as tau grows the push ends wherever the predictions differ, and the pull doubles. Without a
wanted condition the pull is absent, and tau = 0 is negative prompting at the same scale. The paper has one forbidden
condition; several are summed here.
"""

from dataclasses import dataclass

import torch

from dng_lightning.errors import check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step, per_image
from dng_lightning.guidance.signed_negative import differences


@dataclass(frozen=True)
class ContrastiveCFG(Guidance):
    """Pulls harder the more the wanted condition differs, and pushes less the more a forbidden one does.

    The defaults are the paper's for Stable Diffusion.

    Attributes:
        scale: strength w of the pull and of the push, >= 0; 0 is the unconditional prediction, whatever is wanted.
        tau: how fast they answer to the squared difference, >= 0. That is a sum over the D coordinates of an image: for
            the same answer to the same mean squared difference, tau goes with 1 / D. The default belongs to latents of
            D = 16,384 and stands for 4.2 at 28x28 pixels and for 1.1 at 3x32x32.
    """

    scale: float = 7.5
    tau: float = 0.2

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale, tau=self.tau)

    @property
    def needs(self) -> Needs:
        """The unconditional prediction too."""
        return Needs(null=True)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The unconditional prediction and the scaled differences; ``Guided.scale`` sums over the conditions."""
        null, toward, away = differences(predictions)
        pull = 2 * self.scale * torch.sigmoid(self.tau * toward.square().flatten(1).sum(1))
        pushes = 2 * self.scale * torch.sigmoid(-self.tau * away.square().flatten(2).sum(2))
        if predictions.active is not None:
            pushes = pushes * predictions.active
        eps = null + per_image(pull, toward) * toward - (per_image(pushes, away) * away).sum(1)
        return Guided(eps, pushes.sum(1))
