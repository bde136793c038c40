"""GeoGuide (Poleski, Tabor & Spurek, 2024, arXiv 2407.12889): guidance with steps of constant length.

    mean = mean + scale sqrt(N) / S g / ||g||

with N the numbers in an image and S the number of steps, so that all steps together have the length scale sqrt(N),
whatever the norm of the gradient. g is the gradient of a goal (``classifier_guidance.py``; "class" in the paper), or
the direction of the differences of predictions, which are proportional to the gradients:

    source "classifier":    grad log p(c_k | x_t)
    source "differences":   D_k - D, which is proportional to grad log p(c_k | x_t), and D - D_null for the class

Where g is 0 nothing moves.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor
from torch.nn.functional import normalize

from dng_lightning.errors import check_at_least, check_one_of
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.classifier_guidance import Goal, check_goal, classifier_posterior, goal_gradient
from dng_lightning.interfaces import Guided, Needs, Predictions, Step

Source = Literal["classifier", "differences"]


@dataclass(frozen=True)
class GeoGuide(Guidance):
    """Moves every image by the same length at every step, toward a class or away from forbidden ones.

    The length holds for ancestral sampling; at eta < 1 the same denoised prediction moves the mean by another length.

    Attributes:
        scale: length of all steps together in units of sqrt(N), >= 0; 0 is unguided. The paper has 0.15 for an
            unconditional model and 0.025 for a conditional one (ImageNet).
        goal: "allowed" and "away" avoid the forbidden classes and are the same if there is only one; "class" is the
            class label of the image. "allowed" weights several forbidden classes by their odds, which needs a
            classifier.
        source: of the direction: the gradient of a noise-conditional "classifier", or the "differences" of predictions.
        p_max: greatest sum of the forbidden posteriors, in (0, 1), for the weights of "allowed".

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 0.15
    goal: Goal = "away"
    source: Source = "classifier"
    p_max: float = 0.99

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)
        check_goal(self.goal, self.p_max)
        check_one_of(get_args(Source), source=self.source)

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The gradients, or the predictions whose differences take their place."""
        to_class = self.goal == "class"
        if self.source == "classifier":
            return Needs(class_labels=to_class, classifier="gradient")
        needs = Needs(negatives=not to_class, null=to_class, class_labels=to_class)
        return replace(needs, classifier="posterior") if self.goal == "allowed" else needs

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction, such that the kernel's mean moves by the length of a step."""
        base = predictions.denoised
        along = predictions
        if self.source == "differences":
            toward = None if predictions.null is None else base - predictions.null
            along = replace(predictions, gradient=predictions.differences, class_gradient=toward)
        move = self.scale * normalized_step(goal_gradient(self.goal, along, self.p_max)[0], step.count)
        scale = base.new_full((len(base),), self.scale)
        return Guided(
            base + move / step.kernel.x0_coef, scale, classifier_posterior(predictions, self.p_max), smooth=base
        )


def normalized_step(direction: Tensor, count: int) -> Tensor:
    """``direction`` (B, ...) scaled to the length sqrt(N) / ``count``; shorter where its own length is below 1e-12."""
    flat = direction.flatten(1)
    return math.sqrt(flat.shape[1]) / count * normalize(flat, dim=1).view_as(direction)
