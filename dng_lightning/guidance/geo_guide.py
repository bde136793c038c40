"""GeoGuide (Poleski, Tabor & Spurek, 2024, arXiv 2407.12889): guidance in steps of one length.

    mean = mean + scale sqrt(D) / S g / ||g||

with D the numbers in an image and S the number of steps, so that all steps together have the length scale sqrt(D),
however steep the classifier is. g is the gradient of a goal (``classifier_guidance.py``), theirs being "wanted"; or the
direction of the classifier-free differences, which stand for the gradients:

    source "classifier":    grad log p(c_k | x_t)
    source "differences":   -(eps_k - eps) = sigma_t grad log p(c_k | x_t), and eps_null - eps for the wanted class

Where g is 0 nothing moves.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor
from torch.nn.functional import normalize

from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step
from dng_lightning.guidance.classifier_guidance import Goal, check_goal, told, uphill

Source = Literal["classifier", "differences"]


@dataclass(frozen=True)
class GeoGuide(Guidance):
    """Moves every image equally far at every step, toward a wanted class or away from forbidden ones.

    The length is that of ancestral sampling; at eta < 1 the same noise prediction moves the mean otherwise.

    Attributes:
        scale: length of the whole way in units of sqrt(D), >= 0; 0 is unguided. Theirs: 0.15 for an unconditional
            model, 0.025 for a conditional one (ImageNet).
        goal: "allowed" and "away" for the forbidden classes, which are the same if there is only one; "wanted" for the
            wanted one. "allowed" weighs several forbidden classes by their odds, so that it needs a classifier.
        source: of the direction: the gradient of a noise-conditional "classifier", or the "differences" of predictions.
        cap: greatest sum of the forbidden posteriors, in (0, 1), for the weights of "allowed".

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 0.15
    goal: Goal = "away"
    source: Source = "classifier"
    cap: float = 0.99

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)
        check_goal(self.goal, self.cap)
        if self.source not in get_args(Source):
            raise SettingError(f"source must be classifier or differences; got {self.source}")

    @property
    def needs(self) -> Needs:
        """The gradients, or the predictions whose differences stand for them."""
        if self.source == "classifier":
            return Needs(negatives=False, gradient=True)
        wanted = self.goal == "wanted"
        return Needs(negatives=not wanted, null=wanted, posterior=self.goal == "allowed")

    @property
    def tracks_posterior(self) -> bool:
        """Where it asks for a classifier: it is told one."""
        return self.needs.classifier

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction, its mean moved by the length of a step."""
        base = predictions.base
        along = differences(predictions) if self.source == "differences" else predictions
        by = self.scale * step_along(uphill(self.goal, along, self.cap)[0], step.count)
        posterior = told(predictions, self.cap)
        return Guided(step.transition.with_mean_moved(base, by), base.new_full((len(base),), self.scale), posterior)


def differences(predictions: Predictions) -> Predictions:
    """The predictions, with their differences in the place of the gradients."""
    base, null = predictions.base, predictions.null
    # without a wanted class, predictors give the base itself for the unconditional prediction
    wanted = None if null is None or null is base else null - base
    return replace(predictions, gradient=base.unsqueeze(1) - predictions.negatives, wanted_gradient=wanted)


def step_along(direction: Tensor, count: int) -> Tensor:
    """Of length sqrt(D) / ``count`` along ``direction`` (B, ...); 0 where that is 0, and short where it is < 1e-12."""
    flat = direction.flatten(1)
    return math.sqrt(flat.shape[1]) / count * normalize(flat, dim=1).view_as(direction)
