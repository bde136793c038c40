"""No guidance: eps_hat = eps."""

from dataclasses import dataclass

from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step


@dataclass(frozen=True)
class Unguided(Guidance):
    """Samples from the model as it is."""

    @property
    def needs(self) -> Needs:
        """The base prediction alone."""
        return Needs(negatives=False)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction itself."""
        return Guided(predictions.base, predictions.base.new_zeros(len(predictions.base)))
