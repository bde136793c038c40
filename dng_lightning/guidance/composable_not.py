"""The NOT of composable diffusion (Liu et al., ECCV 2022, arXiv 2206.01714), as TraSCE (2412.07658) applies it.

    eps_hat = eps_null + scale (eps_+ - eps_-)

The unconditional prediction cancels inside the bracket: this is the signed form (``signed_negative.py``) with one scale
for both signs, and so it is defined for several forbidden conditions, one pull and one push a condition:

    eps_hat = eps_null + scale ((eps_+ - eps_null) - sum_k (eps_k - eps_null))

Without a wanted condition eps_+ = eps_null, and it is DNG's negative prompting (``negative_prompting.py``) at the same
scale.
"""

from dataclasses import dataclass

from dng_lightning.errors import check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step
from dng_lightning.guidance.signed_negative import differences


@dataclass(frozen=True)
class ComposableNot(Guidance):
    """Moves by the difference between the wanted condition and the forbidden ones.

    Attributes:
        scale: strength of the pull and of the push, >= 0; 0 is the unconditional prediction, whatever is wanted.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)

    @property
    def needs(self) -> Needs:
        """The unconditional prediction too."""
        return Needs(null=True)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The unconditional prediction and the scaled difference."""
        null, toward, away = differences(predictions)
        return Guided(null + self.scale * (toward - away.sum(1)), null.new_full((len(null),), self.scale))
