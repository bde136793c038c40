"""Adaptive choice of the negative, after VL-DNP (Chang, Kim, Choi, NeurIPS 2025 workshop, arXiv 2510.26052).

At scheduled steps an observer looks at x0_hat, the denoised base prediction, and says which forbidden conditions are
emerging; from the next step on these alone are active, until the next look. Whatever guidance is wrapped then applies:

    eps_hat = guidance(eps, {eps_k : k active}),        active = {k : p(c_k | x0_hat) >= threshold}

Theirs negates with a constant scale (``SignedNegative``) what a vision-language model names in its own words, and shows
it the prediction with classifier-free guidance (``shown_scale``); here it chooses among the forbidden conditions. The
choice is of *what* is negated, Dynamic Negative Guidance's is of *how much*; the conditions that are not active cost no
evaluation.

A tracked posterior knows nothing of the steps at which its condition was not evaluated. Left at its prior it comes too
late: on a ring of ten Gaussians, three of them forbidden (50 steps), the forbidden mass only falls from .30 to .26, and
to .09 with all conditions evaluated at every step. So a condition that becomes active starts from the observer's
probability, or from what was tracked of it if that is more: .09 again, with 1.5 evaluations a step in place of 4. To
give the tracker the observer's word at every look, not only at the first, bends the shares of the rest more.

Where the observer is the classifier that also labels the images, it judges its own work: ask another one for a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_0_to_1, check_at_least_0
from dng_lightning.guidance.base import Guided, Needs, Predictions, Step
from dng_lightning.guidance.wrapping import Wrapping

UNTOLD = (
    "AdaptiveNegative's conditions come and go, and below eta 1 their posterior is biased against the class: set "
    "divergence of the guidance in it to 1 (twice the network's work), or eta to 1"
)
SOMETHING = 1e-30  # a probability that says nothing, but that there is a new condition to be kept below the cap


@dataclass(frozen=True)
class Adapted:
    """What is remembered of a batch.

    Attributes:
        active: the conditions that are negated, bool (B, K).
        inner: the state of the wrapped guidance.
    """

    active: Tensor
    inner: Any


@dataclass(frozen=True)
class AdaptiveNegative(Wrapping):
    """Lets another guidance negate only what an observer sees emerging; nothing before the first look.

    Attributes:
        guidance: the method that is applied.
        looks: at which steps the observer looks: so many, evenly spaced inside the chain; or fractions of it in [0, 1);
            or, if all are whole, the numbers of the steps, from 0. VL-DNP's are [5, 6, 7, 9, 12, 16, 21, 27, 34, 42],
            few because its observer is slow.
        threshold: least probability of a condition that is emerging, in [0, 1]; 0 makes every condition active.
        most: how many conditions may be active at once in an image, the most probable ones; None for all.
        trust: factor, in [0, 1], of the observer's probability that a tracked posterior starts from; 0 leaves it where
            it was. Less than 1 for an observer that knows only yes and no.
        shown_scale: of classifier-free guidance in the prediction that the observer is shown, >= 0; 1 for none.

    Raises:
        SettingError: a setting is out of its range.
    """

    looks: int | Sequence[int] | Sequence[float] = 20
    threshold: float = 0.1
    most: int | None = None
    trust: float = 1.0
    shown_scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.looks, int):
            possible = self.looks >= 1
        else:
            possible = len(self.looks) > 0 and all(look >= 0 and (self._numbered or look < 1) for look in self.looks)
        if not possible:
            raise SettingError(
                "looks must be a number of them, at least 1, or fractions of the chain in [0, 1), or numbers of steps; "
                f"got {self.looks}"
            )
        check_at_least_0(shown_scale=self.shown_scale)
        check_0_to_1(threshold=self.threshold, trust=self.trust)
        if self.most is not None and self.most < 1:
            raise SettingError(f"most must be at least 1; got {self.most}")

    @property
    def needs(self) -> Needs:
        """What the wrapped guidance needs, and an observer."""
        return self._shown(self.guidance.needs)

    @property
    def observes(self) -> bool:
        """Yes: it learns what is active, whatever it wraps."""
        return True

    def bias(self, eta: float) -> str | None:
        """The other's, and wherever that one counts on the sampler's noise."""
        return UNTOLD if eta < 1 and self.needs.divergence == 0 else super().bias(eta)

    def asks(self, state: Adapted, step: Step) -> Needs:
        """What the wrapped guidance asks for, of the active conditions; the observer where it is to look."""
        asked = self.guidance.asks(state.inner, step)
        probes = asked.divergence or None  # the sampler's noise tells no divergence of conditions that come and go
        asked = replace(asked, active=state.active, divergence=probes)
        return self._shown(asked) if self._looks(step) else asked

    def start(self, x_T: Tensor, classes: int) -> Adapted:
        """Nothing is active."""
        active = torch.zeros(len(x_T), classes, dtype=torch.bool, device=x_T.device)
        return Adapted(active, self.guidance.start(x_T, classes))

    def guide(self, predictions: Predictions, state: Adapted, step: Step) -> Guided:
        """What the wrapped guidance makes of the active conditions; its scale is 0 where there are none."""
        guided = self.guidance.guide(predictions, state.inner, step)
        return replace(guided, scale=guided.scale * state.active.any(1))

    def observe(self, state: Adapted, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Adapted:
        """The wrapped guidance's state after the step, and what is active after the look."""
        active, predictions = self._look(state, step, predictions)
        return Adapted(active, self.guidance.observe(state.inner, step, x_t, x_s, predictions))

    def look_on(self, state: Adapted, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Adapted:
        """The same after a step without its push."""
        active, predictions = self._look(state, step, predictions)
        return Adapted(active, self.guidance.look_on(state.inner, step, x_t, x_s, predictions))

    def _look(self, state: Adapted, step: Step, predictions: Predictions) -> tuple[Tensor, Predictions]:
        """What is active from here on, and the predictions with what the wrapped guidance is told."""
        if not self._looks(step):
            return state.active, predictions
        p = predictions.emerging
        if p is None:
            raise SettingError("AdaptiveNegative needs an observer: wrap the predictor in WithObserver")
        active = p >= self.threshold
        if self.most is not None:
            chosen = p.topk(min(self.most, p.shape[1])).indices
            active = active & torch.zeros_like(active).scatter(1, chosen, True)
        told = (self.trust * p).clamp(min=SOMETHING) * (active & ~state.active)
        return active, replace(predictions, emerging=told)

    def _shown(self, needs: Needs) -> Needs:
        return replace(needs, observed=True, shown_scale=self.shown_scale, null=needs.null or self.shown_scale != 1)

    @property
    def _numbered(self) -> bool:
        """Whether ``looks`` are the numbers of steps."""
        return not isinstance(self.looks, int) and all(isinstance(look, int) for look in self.looks)

    def _looks(self, step: Step) -> bool:
        if isinstance(self.looks, int):
            looks: Sequence[float] = [(i + 1) / (self.looks + 1) for i in range(self.looks)]
        else:
            looks = self.looks
        if not self._numbered:
            return step.index in {round(look * step.count) for look in looks}
        if max(looks) >= step.count:
            raise SettingError(f"looks names step {max(looks)}, and there are {step.count} steps, counted from 0")
        return step.index in looks
