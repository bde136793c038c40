"""The NOT of composable diffusion (Liu et al., ECCV 2022, arXiv 2206.01714), as TraSCE (2412.07658) applies it.

    D_hat = D_null + scale (D_+ - D_-)

The unconditional prediction cancels inside the bracket: this is the signed form (``signed_negative.py``) with one scale
for both signs, and so it is defined for several forbidden conditions, one pull and one push for each of them.
"""

from dataclasses import dataclass

from dng_lightning.errors import check_at_least
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.signed_negative import null_differences
from dng_lightning.interfaces import Guided, Needs, Predictions, Step


@dataclass(frozen=True)
class ComposableNot(Guidance):
    """Moves by the difference between the class or prompt and the forbidden conditions.

    Attributes:
        scale: strength of the pull and of the push, >= 0; 0 is the unconditional prediction.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The forbidden predictions and the unconditional one."""
        return Needs(negatives=True, null=True)

    def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
        """The unconditional prediction and the scaled difference."""
        null, toward, away = null_differences(predictions)
        return Guided(null + self.scale * (toward - away.sum(1)), null.new_full((len(null),), self.scale))
