"""What a guidance is: it turns noise predictions into one, and learns from the step that was taken.

A guidance calls no network and draws no noise; what it must remember about a batch is a tensor (or a small dataclass
of tensors) that it is handed back, so that one guidance object serves any number of batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dng_lightning.schedule import NoiseSchedule, Transition

Attending = Callable[[Tensor, Tensor], Tensor]
"""``attending(z (B, tokens, width), away (B, tokens, width)) -> z``: what goes on from a network's attention to a text.

``z`` is what came of the base's text, ``away`` the sum of z_k - z over the forbidden texts, by the same queries.
"""

BIASED = (
    "a posterior tracked along a deterministic sampler is biased against the class: set the guidance's divergence to 1 "
    "(twice the network's work), or eta above 0"
)


@dataclass(frozen=True)
class Needs:
    """What a guidance needs besides the base prediction.

    Attributes:
        negatives: the predictions of the forbidden conditions.
        null: the unconditional prediction, where the base is that of a wanted condition.
        posterior: a classifier's log p(c | x_t) (``predictors.WithPosterior``).
        gradient: and its gradient with regard to x_t.
        active: which forbidden conditions count for which image, (B, K) booleans, so that the others need not be
            evaluated; None for all.
        wanted: a wanted condition; without one there is nothing to guide toward.
        divergence: the divergence of their differences to the base, estimated with so many probes a step where the
            sampler draws less noise than the kernel has (eta < 1); with 0 of them, as the sampler's own noise tells it,
            at no cost, which at eta = 0 is not at all; None for no divergence (``divergence.py``).
        observed: what an observer sees emerging in the denoised images (``observation.WithObserver``).
        shown_scale: of classifier-free guidance in the prediction that the observer is shown; 1 for none.
        attending: the base prediction is to attend to its text like this; None for the network's own way.
    """

    negatives: bool = True
    null: bool = False
    posterior: bool = False
    gradient: bool = False
    active: Tensor | None = None
    wanted: bool = False
    divergence: int | None = None
    observed: bool = False
    shown_scale: float = 1.0
    attending: Attending | None = None

    @property
    def avoids(self) -> bool:
        """Whether there must be something forbidden."""
        return self.negatives or self.attending is not None

    @property
    def classifier(self) -> bool:
        """Whether a classifier must be asked."""
        return self.posterior or self.gradient


@dataclass(frozen=True)
class Predictions:
    """The noise predictions at one level, and what else a guidance asked for.

    Attributes:
        base: what the images are guided from, (B, C, H, W); the unconditional one for class removal.
        negatives: those of the K forbidden conditions, (B, K, C, H, W), equal to the base where they are not active.
        log_posterior: log p(c_k | x_t) of the forbidden conditions, (B, K).
        null: the unconditional prediction, (B, C, H, W).
        gradient: its gradient with regard to x_t, (B, K, C, H, W).
        wanted_gradient: the same for the wanted condition, (B, C, H, W); None where none is wanted.
        divergence: an estimate of the divergence of each negative less the base with regard to x_t, (B, K).
        active: which forbidden conditions were evaluated for which image, (B, K); None for all.
        emerging: an observer's probability of each forbidden condition in the denoised image, (B, K). A guidance that
            tracks a posterior takes it for the least that it can be; 0 says nothing.
    """

    base: Tensor
    negatives: Tensor
    log_posterior: Tensor | None = None
    null: Tensor | None = None
    gradient: Tensor | None = None
    wanted_gradient: Tensor | None = None
    divergence: Tensor | None = None
    active: Tensor | None = None
    emerging: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """Where the sampler is.

    Attributes:
        index: number of the step, from 0.
        count: steps in all.
        t: level that the step starts from.
        s: level that it goes to, < t.
        transition: the Gaussian kernel q(x_s | x_t) that evidence is measured by.
        eta: that of the sampler; it draws with eta^2 times the kernel's variance.
        drawn: the kernel that the sampler draws from; None for ``transition`` itself, as at eta = 1.
    """

    index: int
    count: int
    t: int
    s: int
    transition: Transition
    eta: float = 1.0
    drawn: Transition | None = None


@dataclass(frozen=True)
class Guided:
    """A guided prediction and what there is to say about it.

    Attributes:
        eps: the guided noise prediction, (B, C, H, W).
        scale: the factor of the push, away from the forbidden conditions or toward the wanted one, (B,).
        posterior: p(c_k | x_t), (B, K), for guidances that track it; else None.
        renoise: the noise that the denoised image goes back to the chain with, (B, C, H, W); None for ``eps`` itself.
    """

    eps: Tensor
    scale: Tensor
    posterior: Tensor | None = None
    renoise: Tensor | None = None


class Guidance(ABC):
    """A guidance method; a new one is one new file with one subclass, a frozen dataclass of its settings."""

    @property
    def needs(self) -> Needs:
        """The most that it may ask for at any step."""
        return Needs()

    @property
    def tracks_posterior(self) -> bool:
        """Whether what it says of a step has a posterior."""
        return False

    @property
    def neutral(self) -> float:
        """The scale at which the base prediction comes out as it is."""
        return 0.0

    @property
    def observes(self) -> bool:
        """Whether it learns from the steps."""
        return type(self).observe is not Guidance.observe

    def bias(self, eta: float) -> str | None:
        """Why what it tracks is biased with a sampler of this ``eta``, and the mend, in one line; None if it is not."""
        return BIASED if eta == 0 and self.needs.divergence == 0 else None

    def on(self, schedule: NoiseSchedule) -> "Guidance":
        """The same with the settings filled in that follow from the noise levels; the sampler asks for it first."""
        return self

    def asks(self, state: Any, step: Step) -> Needs:
        """What it asks for at this step, no more than ``needs``."""
        return self.needs

    def beside(self, checkpoint: Path) -> "Guidance":
        """Itself, with what it left to be found beside the model's ``checkpoint`` filled in.

        Raises:
            SettingError: what lies there cannot be used.
        """
        return self

    def start(self, x_T: Tensor, classes: int) -> Any:
        """The state for a batch of images ``x_T`` (B, C, H, W) with ``classes`` forbidden conditions; None for none."""
        return None

    @abstractmethod
    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """The guided prediction; ``state`` is left as it is."""

    def observe(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Any:
        """The state after the step from ``x_t`` to ``x_s`` was taken."""
        return state

    def look_on(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Any:
        """The same after a step that was taken without this guidance's push."""
        return self.observe(state, step, x_t, x_s, predictions)


def per_image(scale: Tensor, like: Tensor) -> Tensor:
    """``scale`` (B, ...) shaped to multiply ``like`` (B, ..., C, H, W) image by image."""
    return scale.view(*scale.shape, *[1] * (like.ndim - scale.ndim))
