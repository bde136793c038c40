"""No guidance: D_hat = D."""

from dataclasses import dataclass

from dng_lightning.guidance.base import Guidance, unguided
from dng_lightning.interfaces import Guided, Needs, Predictions, Step


@dataclass(frozen=True)
class Unguided(Guidance):
    """Samples from the model without any guidance."""

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The base prediction alone."""
        return Needs()

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction itself."""
        return unguided(predictions)
