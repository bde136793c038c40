"""A guidance that changes another one in one respect."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Needs, Predictions, Step


@dataclass(frozen=True)
class GuidanceWrapper(Guidance):
    """Delegates to the wrapped guidance whatever a subclass does not override.

    Attributes:
        guidance: the wrapped guidance.
    """

    guidance: Guidance

    @property
    def identity_scale(self) -> float:  # type: ignore[override]  # a class attribute of the others
        """The wrapped guidance's."""
        return self.guidance.identity_scale

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """What the wrapped guidance needs."""
        return self.guidance.needs(state, step)

    def start(self, x_T: Tensor, conditions: int) -> Any:
        """The wrapped guidance's state."""
        return self.guidance.start(x_T, conditions)

    def update(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> Any:
        """The wrapped guidance's state after the step."""
        return self.guidance.update(state, step, x_t, x_s, predictions, guided)
