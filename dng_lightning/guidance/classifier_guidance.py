"""Classifier guidance (Dhariwal & Nichol, 2021, arXiv 2105.05233), toward a class or away from forbidden ones.

With g the gradient of the goal's log probability with respect to x_t, from a noise-conditional classifier:

    goal "class":     g =  grad log p(c+ | x_t)                               the paper's classifier guidance
    goal "allowed":   g =  grad log(1 - sum_k p_k) = -sum_k odds_k grad log p_k,  odds_k = p_k / (1 - sum_j p_j)
    goal "away":      g = -sum_k grad log p_k                                 the same with a negative sign

    rule "score":     D_hat = D + scale sigma_t^2 / alpha_t g                 the paper's algorithm 2
    rule "mean":      mean    = mean + scale Sigma_t g                        the paper's algorithm 1

"allowed" at scale 1 is the score of p(x | no c_k), as in Dynamic Negative Guidance, with gradients in place of the
differences of predictions. "away" pushes all images, most strongly those that are least like the class. The two rules
agree to first order in the step; "score" is exact on any grid and for any sampler, "mean" has no push in the last step.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least, check_in, check_one_of
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Needs, Predictions, Step, per_image, provided
from dng_lightning.posterior.base import at_most, odds

Goal = Literal["allowed", "away", "class"]
Rule = Literal["score", "mean"]


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Follows the gradient of a noise-conditional classifier, without predictions of the forbidden conditions.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided, 1 is exact for "class" and "allowed".
        goal: whose probability rises: "allowed" and "away" avoid the forbidden classes, "class" is the class label of
            the image.
        rule: what the gradient is added to: "score", or "mean" of the ancestral kernel with the variance Sigma_t that
            the sampler draws with at eta = 1.
        p_max: greatest sum of the forbidden posteriors, in (0, 1); bounds the odds of "allowed".
        unconditional: guide the unconditional prediction even where a class label is given, as for an unconditional
            model; then "class" at scale 1 gives the conditional images. Otherwise the two add up.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.0
    goal: Goal = "allowed"
    rule: Rule = "score"
    p_max: float = 0.99
    unconditional: bool = False

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)
        check_goal(self.goal, self.p_max)
        check_one_of(get_args(Rule), rule=self.rule)

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The gradients of the classifier."""
        return Needs(null=self.unconditional, class_labels=self.goal == "class", classifier="gradient")

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The prediction moved along the gradient."""
        base = predictions.null if self.unconditional and predictions.null is not None else predictions.denoised
        g, weight = goal_gradient(self.goal, predictions, self.p_max)
        level, kernel = step.level, step.kernel
        if self.rule == "score":
            factor = level.sigma**2 / level.alpha if level.alpha else 0.0  # pure noise shows no class
        else:
            factor = kernel.variance / kernel.x0_coef
        denoised = base + self.scale * factor * g
        return Guided(denoised, self.scale * weight, classifier_posterior(predictions, self.p_max), smooth=base)


def goal_gradient(goal: Goal, predictions: Predictions, p_max: float) -> tuple[Tensor, Tensor]:
    """The gradient g of the goal, (B, ...), and the sum of its factors, (B,).

    Raises:
        SettingError: no class label is given, or the predictions carry no gradient.
    """
    if goal == "class":
        if predictions.class_gradient is None:
            raise SettingError("goal class needs class_labels: set them, or take the goal allowed or away")
        return predictions.class_gradient, predictions.denoised.new_ones(len(predictions.denoised))
    gradient = provided(predictions.gradient, "gradient")
    weights = gradient.new_ones(gradient.shape[:2])
    if goal == "allowed":
        weights = odds(at_most(provided(predictions.log_posterior, "log_posterior"), p_max)).to(gradient.dtype)
    return -(per_image(weights, gradient) * gradient).sum(1), weights.sum(1)


def classifier_posterior(predictions: Predictions, p_max: float) -> Tensor | None:
    """The classifier's bounded posteriors of the forbidden conditions, (B, K); None without a classifier."""
    log_p = predictions.log_posterior
    return None if log_p is None else at_most(log_p, p_max).exp()


def check_goal(goal: Goal, p_max: float) -> None:
    """Refuse an unknown goal and a bound outside (0, 1).

    Raises:
        SettingError: naming the setting.
    """
    check_one_of(get_args(Goal), goal=goal)
    check_in("(0, 1)", p_max=p_max)
