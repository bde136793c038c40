"""Images of a wanted class c+ without a forbidden one c-: some negative guidance around another base.

The score of p(x | c+, not c-) is that of p(x | c+) pushed away from c- by the odds of p(c- | x, c+). This needs nothing
but the wanted class's prediction in the place of the unconditional one, for the push and for the posterior: the kernels
of c- and c+ give p(c- | x, c+) where c- is part of c+, and ``prior`` is its share there.

With classifier-free guidance as its base, both branches have it, for the push and for the posterior:

    eps_+/- <- eps_null + w (eps_+/- - eps_null)

so that the posterior is still a ratio of two kernels of the same (sharpened) model. Which base the authors' own
text-to-image runs have is not known.

A text rarely names a part of what the prompt asks for: "a seven" is of any colour, where "a red digit" is red. The
ratio of their kernels then says of every image that it is none of these sevens, whose colours it has not. But digit and
colour are ``independent`` given the image, so that p(c- | x, c+) = p(c- | x), which the kernels of c- and of everything
give, without classifier-free guidance; what is pushed away from is eps_- - eps_null:

    eps_- <- eps_+ + (eps_- - eps_null)          the conjunction of both (Liu et al. 2022)

With a constant scale this is the signed form of negative prompting (``signed_negative.py``).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.base import Guided, Needs, Predictions, Step
from dng_lightning.guidance.classifier_free import null_of
from dng_lightning.guidance.wrapping import Wrapping

UNKNOWN = "below eta 1 what is tracked of an independent class is biased against it: set eta to 1"


@dataclass(frozen=True)
class PositiveAndNegative(Wrapping):
    """Avoids the forbidden classes among images of the wanted one.

    Attributes:
        guidance: the negative guidance.
        wanted_scale: w above, >= 0; 1 takes the predictions as they are, and is ``guidance`` itself bit for bit.
        independent: c- says nothing of what c+ does, as above. ``prior`` is its share in c+ either way. Not for
            deterministic sampling: the divergence (``divergence.py``) is that of other differences.

    Raises:
        SettingError: a setting is out of its range, or asks for a divergence where ``independent`` has none.
    """

    wanted_scale: float = 1.0
    independent: bool = False

    def __post_init__(self) -> None:
        check_at_least_0(wanted_scale=self.wanted_scale)
        if self.independent and self.guidance.needs.divergence:
            raise SettingError("independent goes without a divergence: set divergence to 0, or independent to false")

    def bias(self, eta: float) -> str | None:
        """The other's; where that one has no divergence wherever it counts on the sampler's noise."""
        tracks = self.independent and self.guidance.needs.divergence is not None
        return UNKNOWN if tracks and eta < 1 else super().bias(eta)

    @property
    def needs(self) -> Needs:
        """What the negative guidance does, a wanted class, and for w other than 1 the unconditional prediction."""
        return self._and_mine(super().needs)

    def asks(self, state: Any, step: Step) -> Needs:
        """The same of what it asks for."""
        return self._and_mine(super().asks(state, step))

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """What the negative guidance makes of these predictions."""
        return self.guidance.guide(self.sharpened(predictions), state, step)

    def observe(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Any:
        """What it knows after the step."""
        return self.guidance.observe(state, step, x_t, x_s, self._telling(predictions))

    def look_on(self, state: Any, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Any:
        """What it knows after a step without its push."""
        return self.guidance.look_on(state, step, x_t, x_s, self._telling(predictions))

    def sharpened(self, predictions: Predictions) -> Predictions:
        """The predictions that an image is drawn by: the wanted branch with classifier-free guidance, and the other."""
        if self.wanted_scale == 1 and not self.independent:
            return predictions
        null, w = null_of(predictions), self.wanted_scale
        base = torch.lerp(null, predictions.base, w)
        if self.independent:
            negatives = base.unsqueeze(1) + (predictions.negatives - null.unsqueeze(1))
            return replace(predictions, base=base, negatives=negatives, divergence=None)
        negatives = torch.lerp(null.unsqueeze(1), predictions.negatives, w)
        divergence = None if predictions.divergence is None else w * predictions.divergence
        return replace(predictions, base=base, negatives=negatives, divergence=divergence)

    def _telling(self, predictions: Predictions) -> Predictions:
        """The predictions that tell what an image comes to show."""
        if not self.independent:
            return self.sharpened(predictions)
        return replace(predictions, base=null_of(predictions), divergence=None)

    def _and_mine(self, needs: Needs) -> Needs:
        return replace(needs, null=needs.null or self.independent or self.wanted_scale != 1, wanted=True)
