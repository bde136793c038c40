"""An observer that looks at the denoised images and says which forbidden conditions are emerging in them."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dng_lightning.guidance.base import Needs, Predictions
from dng_lightning.guidance.classifier_free import null_of
from dng_lightning.predictors import ALL, Predictor
from dng_lightning.schedule import NoiseSchedule

Observer = Callable[[Tensor], Tensor]
"""``observer(x0_hat (B, ...)) -> (B, K)``: the probability that each image shows each forbidden condition.

A classifier's, or a vision-language model's yes (1) and no (0); one of a latent model decodes x0_hat first.
"""


class WithObserver(Predictor):
    """Another predictor's predictions, with what an observer sees emerging where a guidance asks for it.

    The observer is shown x0_hat = (x_t - sigma_t eps) / alpha_t of the base prediction: what the image would become on
    average if it were left alone from here on, or of that with classifier-free guidance, as asked for. Its cost is not
    among the ``evaluations``.

    Args:
        predictor: gives the noise predictions.
        observer: told nothing of the level; x0_hat of an early one is blurred.
        schedule: the predictor's noise levels.
        clip: bound on x0_hat, None for none.
    """

    def __init__(
        self, predictor: Predictor, observer: Observer, schedule: NoiseSchedule, clip: float | None = None
    ) -> None:
        self.predictor, self.observer, self.schedule, self.clip = predictor, observer, schedule, clip
        self.classes = predictor.classes
        self.gives_posterior, self.gives_observation = predictor.gives_posterior, True
        self.gives_attention = predictor.gives_attention

    def predict(self, x_t: Tensor, t: int, needs: Needs = ALL, wanted: Tensor | None = None) -> Predictions:
        """See ``Predictor.predict``."""
        predictions = self.predictor.predict(x_t, t, needs, wanted)
        self.evaluations = self.predictor.evaluations
        if not needs.observed:
            return predictions
        eps = predictions.base
        if needs.shown_scale != 1:
            eps = torch.lerp(null_of(predictions), eps, needs.shown_scale)
        x0_hat = self.schedule.transition(t, 0, clip=self.clip).x0_hat(x_t, eps)
        return replace(predictions, emerging=self.observer(x0_hat))
