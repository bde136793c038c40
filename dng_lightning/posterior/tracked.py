"""The posterior tracked along the reverse chain (Koulischer et al., ICLR 2025, section 3 and algorithm 2).

    log p(c_k | x_s) = log p(c_k | x_t) + temperature * log_ratio + offset        (log_ratio.py)

starting from the prior, at no cost beyond the predictions that the guidance needs anyway.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least, check_in, check_one_of
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.kernel import NoiseLevel
from dng_lightning.posterior.base import LEAST_LOG_P, Posterior, mask_inactive, odds, state_dtype
from dng_lightning.posterior.log_ratio import check_corrections, corrected, log_ratio, without_push

Reference = Literal["unconditional", "complement"]


class PosteriorFromPrior(Posterior):
    """Base class: the state is log p(c_k | x_t), (B, K), and starts from the prior.

    Attributes:
        prior: p(c_k) at pure noise, in (0, 1): one number, or one for each condition.
        p_min: least posterior, in [0, prior].
        p_max: greatest sum of the posteriors, in [prior, 1).
    """

    prior: float | Sequence[float]
    p_min: float
    p_max: float

    @property
    def priors(self) -> list[float]:
        """The prior as a list of one number or K."""
        return [float(self.prior)] if isinstance(self.prior, int | float) else [float(p) for p in self.prior]

    def needs(self, state: Tensor | None = None, step: Step | None = None) -> Needs:
        """The predictions of the conditions."""
        return Needs(negatives=True, tracks=True, divergence=0)

    def start(self, x_T: Tensor, conditions: int) -> Tensor:
        """Log prior, (B, K).

        Raises:
            SettingError: the priors are not one or K, or sum to more than p_max.
        """
        priors = self.priors * conditions if len(self.priors) == 1 else self.priors
        if len(priors) != conditions:
            raise SettingError(f"prior must be one number or one for each of the {conditions} forbidden conditions")
        if sum(priors) > self.p_max:
            raise SettingError(
                f"the priors of {conditions} forbidden conditions sum to {sum(priors):g}, above p_max {self.p_max}"
            )
        log_p = torch.tensor(priors, dtype=torch.float64).log()
        return log_p.to(x_T.device, state_dtype(x_T.device)).repeat(len(x_T), 1)

    def log_prob(self, predictions: Predictions, state: Tensor, step: Step) -> Tensor:
        """The state itself."""
        return mask_inactive(state, predictions.active)

    @abstractmethod
    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Tensor:
        """Log p(c_k | x_s), (B, K)."""

    def at_least(self, state: Tensor, p: Tensor, level: NoiseLevel, active: Tensor) -> Tensor:
        """See ``Posterior.at_least``; images without a lower bound keep their state, bit for bit."""
        p = p.to(state.dtype)
        counts = active | (p > 0)
        raised = self.bounded(state.maximum(p.log()).masked_fill(~counts, LEAST_LOG_P))
        return torch.where(counts & (p > 0).any(1, keepdim=True), raised, state)

    def bounded(self, log_p: Tensor) -> Tensor:
        """``log_p`` (B, K) at least log p_min, its probabilities summing to at most p_max."""
        lowest = math.log(self.p_min) if self.p_min > 0 else LEAST_LOG_P
        log_p = log_p.clamp(lowest, torch.finfo(log_p.dtype).max)
        # Above p_max, the conditions share p_max - K p_min in proportion. The shares are computed first, since log_p
        # can be so large that its difference to the excess would not resolve log p_max.
        room = math.log(max(self.p_max - log_p.shape[1] * self.p_min, 1e-300))
        shared = torch.logaddexp(log_p.log_softmax(1) + room, torch.full_like(log_p, lowest))
        return torch.where(log_p.logsumexp(1, keepdim=True) > math.log(self.p_max), shared, log_p)

    def check_bounds(self) -> None:
        """Refuse priors outside (0, 1), and bounds that exclude the priors."""
        priors, p_min, p_max = self.priors, self.p_min, self.p_max
        if not priors or not all(0 < p < 1 for p in priors):
            raise SettingError(f"prior must be inside (0, 1); got {priors}")
        if not max(priors) <= p_max < 1:
            raise SettingError(f"p_max must be at least the prior and below 1; got p_max {p_max}, prior {priors}")
        if not 0 <= p_min <= min(priors):
            raise SettingError(f"p_min must be between 0 and the prior; got p_min {p_min}, prior {priors}")


@dataclass(frozen=True)
class TrackedPosterior(PosteriorFromPrior):
    """Bayes' rule along the chain for K mutually exclusive conditions, with the authors' corrections.

    The defaults are exact for exact predictions.

    Attributes:
        prior: p(c_k) at pure noise, in (0, 1): one number, or one for each condition.
        temperature: factor of the evidence, >= 0.
        offset: added to log p at each timestep, in nats.
        offset_inside: divide the offset by twice the kernel's variance; see ``corrected``.
        p_min: least posterior, in [0, prior].
        p_max: greatest sum of the posteriors, in [prior, 1); it bounds the odds by p_max / (1 - p_max).
        guidance_shift_weight: share of the guidance's push that counts as evidence, in [0, 1]. 1 is exact for exact
            predictions; with those of a trained model the push then ends too soon, and 0 excludes it from the evidence.
        reference: kernel that the kernel of a condition is compared with: the "unconditional" one, or that of the
            "complement", with the mean (mu - sum_k p_k mu_k) / (1 - sum_k p_k). The latter is more accurate in few
            steps where the allowed distribution has few modes.
        divergence: number of probes for the divergence term of the evidence, for samplers with eta < 1, >= 0; see
            ``Needs``. A deterministic sampler needs 1, which doubles the network evaluations.

    Raises:
        SettingError: a setting is out of its range.
    """

    prior: float | Sequence[float] = 0.1
    temperature: float = 1.0
    offset: float = 0.0
    offset_inside: bool = False
    p_min: float = 0.0
    p_max: float = 0.99
    guidance_shift_weight: float = 1.0
    reference: Reference = "unconditional"
    divergence: int = 0

    def __post_init__(self) -> None:
        self.check_bounds()
        check_corrections(self.temperature, self.offset)
        check_in("[0, 1]", guidance_shift_weight=self.guidance_shift_weight)
        check_one_of(get_args(Reference), reference=self.reference)
        check_at_least(0, divergence=self.divergence)

    def needs(self, state: Tensor | None = None, step: Step | None = None) -> Needs:
        """The predictions of the conditions, and their divergence for samplers with eta < 1."""
        return Needs(negatives=True, tracks=True, divergence=self.divergence)

    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Tensor:
        """Log p(c_k | x_s), (B, K), between p_min and p_max; unchanged where a condition is not active."""
        if step.kernel.variance == 0:  # the step to the data has no evidence
            return state
        log_p, active = mask_inactive(state, predictions.active), predictions.active
        x_s = without_push(x_t, x_s, step, predictions, guided, self.guidance_shift_weight)
        if self.reference == "complement":
            predictions = complement_prediction(log_p, step, predictions)
        variance = step.kernel.variance if self.offset_inside else None
        ratio = log_ratio(step, x_t, x_s, predictions, log_p)
        log_p = log_p + corrected(ratio, step, self.temperature, self.offset, variance)
        if self.reference == "complement":
            rest = torch.log1p(-mask_inactive(state, active).exp().sum(1, keepdim=True))
            log_p = torch.cat([log_p, rest], 1).log_softmax(1)[:, :-1]
        log_p = self.bounded(log_p)
        return log_p if active is None else torch.where(active, log_p, state)


def complement_prediction(log_p: Tensor, step: Step, predictions: Predictions) -> Predictions:
    """The predictions with that of the complement of the forbidden conditions as the base, and its divergences."""
    differences = predictions.differences.to(log_p.dtype)
    weights = odds(log_p).to(log_p.dtype)
    away = torch.einsum("bk,bk...->b...", weights, differences)
    base, divergence = predictions.denoised.to(log_p.dtype) - away, predictions.divergence
    if divergence is None:
        return replace(predictions, denoised=base)
    # the weights change with x_t as well: grad log odds_k = alpha_t / sigma_t^2 (difference_k + away)
    turning = (weights * differences.flatten(2).square().sum(2)).sum(1) + away.flatten(1).square().sum(1)
    shared = (weights * divergence).sum(1) + step.level.alpha / step.level.sigma**2 * turning
    return replace(predictions, denoised=base, divergence=divergence + shared.unsqueeze(1))
