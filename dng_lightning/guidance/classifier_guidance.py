"""Classifier guidance (Dhariwal & Nichol, 2021, arXiv 2105.05233), toward a wanted class or away from forbidden ones.

With g the gradient of the goal's log probability with regard to x_t, by a noise-conditional classifier:

    goal "wanted":    g =  grad log p(c+ | x_t)                               their classifier guidance
    goal "allowed":   g =  grad log(1 - sum_k p_k) = -sum_k odds_k grad log p_k,  odds_k = p_k / (1 - sum_j p_j)
    goal "away":      g = -sum_k grad log p_k                                 theirs with the sign turned

    rule "score":     eps_hat = eps - scale sigma_t g                         their algorithm 2
    rule "mean":      mean    = mean + scale Sigma_t g                        their algorithm 1

"allowed" at scale 1 is the score of p(x | no c_k), as Dynamic Negative Guidance's is: the gradients stand where that
has differences of predictions. "away" pushes all images, those the most that are least like the class. The two rules
agree to first order in the step; "score" is exact on any grid and for any sampler, "mean" ends with no push at all.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step, per_image
from dng_lightning.posterior import capped, odds

Goal = Literal["allowed", "away", "wanted"]
Rule = Literal["score", "mean"]


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Follows the gradient of a noise-conditional classifier; it asks for no prediction of the forbidden conditions.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided, 1 is the theory's for "wanted" and "allowed".
        goal: what becomes more likely: "allowed" and "away" for the forbidden classes, "wanted" for the wanted one.
        rule: what the gradient is added to: "score", or "mean" of the ancestral kernel with the variance Sigma_t that
            the sampler draws with at eta = 1.
        cap: greatest sum of the forbidden posteriors, in (0, 1); bounds the odds of "allowed" by cap / (1 - cap).
        unconditional: start from the unconditional prediction even where a class is wanted, as with a model that was
            told no classes; then "wanted" at scale 1 gives the conditional images. Else the two add up.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.0
    goal: Goal = "allowed"
    rule: Rule = "score"
    cap: float = 0.99
    unconditional: bool = False

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)
        check_goal(self.goal, self.cap)
        if self.rule not in get_args(Rule):
            raise SettingError(f"rule must be score or mean; got {self.rule}")

    @property
    def needs(self) -> Needs:
        """The gradients, and no forbidden prediction."""
        return Needs(negatives=False, null=self.unconditional, gradient=True)

    @property
    def tracks_posterior(self) -> bool:
        """Yes: it is told one at each step."""
        return True

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The prediction moved along the gradient."""
        base = predictions.null if self.unconditional and predictions.null is not None else predictions.base
        g, weight = uphill(self.goal, predictions, self.cap)
        if self.rule == "score":
            eps = base - self.scale * step.transition.sigma_t * g
        else:
            eps = step.transition.with_mean_moved(base, self.scale * step.transition.variance * g)
        return Guided(eps, self.scale * weight, told(predictions, self.cap))


def uphill(goal: Goal, predictions: Predictions, cap: float) -> tuple[Tensor, Tensor]:
    """The gradient g of the goal, (B, C, H, W), and the sum of the factors in it, (B,).

    Raises:
        SettingError: no class is wanted, or the predictions carry no gradient.
    """
    if goal == "wanted":
        if predictions.wanted_gradient is None:
            raise SettingError("goal wanted has no class to go to: set wanted, or take the goal allowed or away")
        return predictions.wanted_gradient, predictions.base.new_ones(len(predictions.base))
    gradient, log_p = predictions.gradient, predictions.log_posterior
    if gradient is None or (goal == "allowed" and log_p is None):
        raise SettingError("there is no gradient of p(c | x_t): wrap the predictor in WithPosterior")
    weights = gradient.new_ones(gradient.shape[:2])
    if goal == "allowed" and log_p is not None:
        weights = odds(capped(log_p, cap)).to(gradient.dtype)
    return -(per_image(weights, gradient) * gradient).sum(1), weights.sum(1)


def told(predictions: Predictions, cap: float) -> Tensor | None:
    """The forbidden posteriors that the predictions carry, capped, (B, K)."""
    log_p = predictions.log_posterior
    return None if log_p is None else capped(log_p, cap).exp()


def check_goal(goal: Goal, cap: float) -> None:
    """Refuse what is no goal, and a cap that bounds nothing.

    Raises:
        SettingError: naming the setting.
    """
    if goal not in get_args(Goal):
        raise SettingError(f"goal must be allowed, away or wanted; got {goal}")
    if not 0 < cap < 1:
        raise SettingError(f"cap must be inside (0, 1); got {cap}")
