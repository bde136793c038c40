"""No guidance: eps_hat = eps."""

from torch import Tensor

from dng_lightning.guidance.base import Guidance, Guided, Predictions, Step


class Unguided(Guidance[None]):
    """Samples from the model as it is."""

    needs_negatives = False

    def start(self, x_T: Tensor, classes: int) -> None:
        """Nothing to remember."""

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The base prediction itself."""
        return Guided(predictions.base, predictions.base.new_zeros(len(predictions.base)))
