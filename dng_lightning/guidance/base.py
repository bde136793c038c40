"""Base class of the guidance methods: combines denoised predictions into one, and tracks a state along the chain."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from dng_lightning.interfaces import Guided, Needs, Predictions, Step


class Guidance(ABC):
    """A guidance method; a new one is one new file with one subclass, a frozen dataclass of its settings.

    A guidance calls no network, draws no noise and reads no file. Its memory of a batch is a state that is passed to
    its methods, so that one guidance object serves any number of batches.

    Attributes:
        identity_scale: the scale at which the guided prediction equals the base prediction.
    """

    identity_scale: ClassVar[float] = 0.0

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """What the guidance needs at a step; without arguments, the most that it may need at any step."""
        return Needs(negatives=True)

    def start(self, x_T: Tensor, conditions: int) -> Any:
        """The state for a batch of images.

        Args:
            x_T: the noise that the chain starts from, (B, ...).
            conditions: number K of forbidden conditions.
        """
        return None

    @abstractmethod
    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """The guided prediction; ``state`` does not change."""

    def update(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> Any:
        """The state after the step from ``x_t`` to ``x_s`` (B, ...) that ``guided`` led to.

        ``guided`` is what ``guide`` returned, or the base prediction where another guidance replaced the push.
        """
        return state


def unguided(predictions: Predictions, scale: float = 0.0) -> Guided:
    """The base prediction, with the ``scale`` at which a guidance has no effect."""
    base = predictions.denoised
    return Guided(base, base.new_full((len(base),), scale))
