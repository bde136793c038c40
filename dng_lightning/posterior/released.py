"""The tracked posterior as the authors' release updates it, faults included.

Its evidence is divided by beta_tilde whatever variance the sampler draws with, and its offset stands inside that
division. Set the sampler's ``variance`` to beta to draw as the release does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.posterior.base import Posterior, mask_inactive
from dng_lightning.posterior.log_ratio import Corrections, log_ratio
from dng_lightning.posterior.tracked import bounded, check_bounds, log_priors


@dataclass(frozen=True)
class ReleasedPosterior(Posterior):
    """The authors' update; the defaults are their settings for CIFAR-10.

    Attributes:
        prior: p(c_k) before anything is known, in (0, 1): one number, or one a condition.
        temperature: factor of the evidence, >= 0.
        offset: added to the squared distances, see ``Corrections``.
        p_min: least posterior, in [0, prior].
        p_max: greatest sum of the posteriors, in [prior, 1).

    Raises:
        SettingError: a setting is out of its range.
    """

    prior: float | Sequence[float] = 0.01
    temperature: float = 0.2
    offset: float = 0.0002
    p_min: float = 1e-6
    p_max: float = 0.8

    def __post_init__(self) -> None:
        check_bounds(self.priors, self.p_min, self.p_max)
        self.corrections  # noqa: B018  # checks its settings

    @property
    def priors(self) -> list[float]:
        """The priors that were given, one or K."""
        return [float(self.prior)] if isinstance(self.prior, int | float) else [float(p) for p in self.prior]

    @property
    def corrections(self) -> Corrections:
        """What the authors add to the evidence."""
        return Corrections(self.temperature, self.offset, offset_inside=True)

    def needs(self, state: Tensor | None = None, step: Step | None = None) -> Needs:
        """The predictions of the conditions."""
        return Needs(negatives=True, tracks=True, divergence=0)

    def start(self, x_T: Tensor, conditions: int) -> Tensor:
        """Log prior, (B, K)."""
        return log_priors(self.priors, self.p_max, x_T, conditions)

    def log_prob(self, predictions: Predictions, state: Tensor, step: Step) -> Tensor:
        """The state itself."""
        return mask_inactive(state, predictions.active)

    def update(
        self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided
    ) -> Tensor:
        """Log p(c_k | x_s), (B, K), between p_min and p_max."""
        if step.kernel.variance == 0:
            return state
        variance = step.kernel.beta_tilde
        evidence = log_ratio(step, x_t, x_s, predictions, state, variance)
        return bounded(state + self.corrections.apply(evidence, step, variance), self.p_min, self.p_max)
