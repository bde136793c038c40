"""Concept Removal Guidance, CRG (Choi, Oh, Choi, Seo and Kim, ICML 2026, arXiv 2606.29801).

The formula is a third party's transcription, not checked against the paper or its code: results of this class are not
the authors'. On eps predictions, with Delta = eps_k - eps_null,

    h       = |eps_+ - eps_null|^2 - |eps_+ - eps_k|^2
    CP      = K / 2 h + 1 / T sum_earlier kappa h,              kappa = beta T / (2 alpha (1 - alpha_bar))
    eps_hat = eps_+ - scale (CP - threshold) / (K |Delta|^2) Delta             where CP > threshold

The presence CP estimates log p(x | c_k) / p(x) from the predictions alone. CP is linear in eps_+, and scale 1 is the
shortest push that reduces CP to the threshold. The weights of the sum are those of DDPM's variational bound; for
denoised predictions of any path they are x0_coef^2 / (2 v), where v is the variance of q(x_t | x_s). The transcription
has no values of K, threshold and scale, so the defaults are ours, as is the sum over several conditions. On an exact
mixture whose forbidden class is half of the images, thresholds 0, -1 and -3 leave 41, 21 and 5 % of it (mixture.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.errors import check_at_least, check_in
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.signed_negative import null_differences
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, per_image

LEAST = 1e-12  # below this K |Delta|^2 a difference counts as 0


@dataclass(frozen=True)
class ConceptRemovalGuidance(Guidance):
    """Pushes an image of a class or prompt as far as needed to reduce the presence of a condition to a threshold.

    The state is the sum over the earlier steps, (B, K).

    Attributes:
        scale: strength of the push (lambda_0), >= 0; 0 is no push, 1 reaches the threshold.
        threshold: presence CP (tau), in nats, above which an image is pushed.
        weight: weight K of the current step in CP, on eps predictions, > 0.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.0
    threshold: float = 0.0
    weight: float = 10.0

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)
        check_in("(-inf, inf)", threshold=self.threshold)
        check_in("(0, inf)", weight=self.weight)

    def needs(self, state: Tensor | None = None, step: Step | None = None) -> Needs:
        """The forbidden, conditional and unconditional predictions; for an unconditional base h is never > 0."""
        return Needs(negatives=True, null=True, class_labels=True)

    def start(self, x_T: Tensor, conditions: int) -> Tensor:
        """Zeros, (B, K)."""
        return x_T.new_zeros(len(x_T), conditions, dtype=torch.float32)

    def guide(self, predictions: Predictions, state: Tensor, step: Step) -> Guided:
        """The base prediction, pushed along the differences of negative and unconditional predictions."""
        base, (_, _, away) = predictions.denoised, null_differences(predictions)
        weight = self.weight * (step.level.alpha / step.level.sigma) ** 2  # K for differences of denoised predictions
        excess = state + weight / 2 * _presence(predictions) - self.threshold
        turn = weight * away.float().square().flatten(2).sum(2)
        scales = self.scale * excess.clamp(min=0) / turn.clamp(min=LEAST)
        scales = scales.masked_fill(turn < LEAST, 0).to(base.dtype)
        return Guided(base - (per_image(scales, away) * away).sum(1), scales.sum(1), smooth=base)

    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Tensor:
        """The sum plus the term of this step."""
        kernel = step.kernel  # kappa / T, for differences of denoised predictions
        return state + kernel.x0_coef**2 / (2 * kernel.forward_variance) * _presence(predictions)


def _presence(predictions: Predictions) -> Tensor:
    """H for differences of denoised predictions, (B, K); 0 where a condition is not active."""
    _, toward, away = null_differences(predictions)
    toward, away = toward.float().flatten(1), away.float().flatten(2)
    return 2 * (toward.unsqueeze(1) * away).sum(2) - away.square().sum(2)
