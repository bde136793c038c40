"""Guidance away from reference images: they take the place of a model of what is forbidden.

What it moves is the denoised prediction x0_hat. The releases of Safe Denoiser and SGF then draw noise anew on the moved
one; here the reverse kernel does that: x_s is drawn from q(x_s | x_t, x0_hat moved).
"""

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from dng_lightning import shipped
from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step
from dng_lightning.guidance.references import References, read


@dataclass(frozen=True)
class ReferenceGuidance(Guidance):
    """Moves the denoised prediction away from reference images; it needs no prediction of the forbidden conditions.

    Its state is the image x_t itself, (B, C, H, W).

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided.
        references: the images: a ``.pt`` file of one tensor (N, C, H, W), uint8 pixels or floats in [-1, 1], or a
            folder of PNG files; or the name of one that ships. Read once a process.

    Raises:
        SettingError: a setting is out of its range; or, when the sampling starts, there are no such images.
    """

    scale: float = 1.0
    references: str = field(kw_only=True)

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)

    @property
    def needs(self) -> Needs:
        """The base prediction alone."""
        return Needs(negatives=False)

    def images(self, like: Tensor) -> References:
        """The references, for a batch of images ``like`` these, (B, C, H, W)."""
        return read(shipped.references(self.references), tuple(like.shape[1:]), like.dtype, like.device)

    def start(self, x_T: Tensor, classes: int) -> Tensor:
        """The noise that the images start from; refuses references that do not fit."""
        self.images(x_T)
        return x_T

    def observe(self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Tensor:
        """The image after the step."""
        return x_s


@dataclass(frozen=True)
class Repulsion(ReferenceGuidance):
    """A push that depends on the denoised prediction alone."""

    def guide(self, predictions: Predictions, state: Tensor, step: Step) -> Guided:
        """The base prediction, its x0_hat moved; the scale is 0 for images that nothing pushes."""
        push = self.push(step.transition.x0_hat(state, predictions.base), self.images(state), step)
        eps = step.transition.with_x0_moved(predictions.base, self.scale * push)
        return Guided(eps, self.scale * push.flatten(1).any(1).to(eps.dtype))

    @abstractmethod
    def push(self, x0_hat: Tensor, references: References, step: Step) -> Tensor:
        """How far ``x0_hat`` (B, C, H, W) moves at scale 1."""


def inside(window: tuple[float, float], step: Step) -> bool:
    """Whether the level that a step starts from lies in the window, both in shares of the noisiest."""
    start, end = window
    return start >= 1 - step.index / step.count >= end


def check_window(window: tuple[float, float]) -> None:
    """Refuse a window that does not go from noise to data.

    Raises:
        SettingError: it does not.
    """
    if not 1 >= window[0] >= window[1] >= 0:
        raise SettingError(f"window must be two levels from 1 (noise) down to 0 (data); got {list(window)}")
