"""A guidance that changes another one in one respect and leaves it the rest."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from dng_lightning.guidance.base import Guidance, Needs, Predictions, Step
from dng_lightning.schedule import NoiseSchedule


@dataclass(frozen=True)
class Wrapping(Guidance):
    """Does what ``guidance`` does, but for what a subclass says.

    Attributes:
        guidance: the other one.
    """

    guidance: Guidance

    @property
    def needs(self) -> Needs:
        """The other's."""
        return self.guidance.needs

    @property
    def tracks_posterior(self) -> bool:
        """Whether the other does."""
        return self.guidance.tracks_posterior

    @property
    def neutral(self) -> float:
        """The other's."""
        return self.guidance.neutral

    @property
    def observes(self) -> bool:
        """Whether the other does."""
        return self.guidance.observes

    def bias(self, eta: float) -> str | None:
        """The other's."""
        return self.guidance.bias(eta)

    def on(self, schedule: NoiseSchedule) -> Self:
        """The other on the schedule."""
        return replace(self, guidance=self.guidance.on(schedule))

    def beside(self, checkpoint: Path) -> Self:
        """With what the other finds beside the checkpoint."""
        return replace(self, guidance=self.guidance.beside(checkpoint))

    def asks(self, state: Any, step: Step) -> Needs:
        """What the other asks for."""
        return self.guidance.asks(state, step)

    def start(self, x_T: Tensor, classes: int) -> Any:
        """The other's state."""
        return self.guidance.start(x_T, classes)

    def observe(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Any:
        """The other's state after the step."""
        return self.guidance.observe(state, step, x_t, x_s, predictions)

    def look_on(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Any:
        """The other's state after a step without its push."""
        return self.guidance.look_on(state, step, x_t, x_s, predictions)
