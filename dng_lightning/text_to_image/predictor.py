"""From a text-conditioned latent U-Net to the noise predictions that a guidance needs."""

from dataclasses import replace

import torch
from torch import Tensor

from dng_lightning.guidance.base import Needs, Predictions
from dng_lightning.predictors import ALL, ClassConditionalPredictor, active_images
from dng_lightning.text_to_image.attention import away_from
from dng_lightning.text_to_image.model import TextToImageModel
from dng_lightning.text_to_image.prompts import Prompts


class TextPredictor(ClassConditionalPredictor):
    """A class-conditional predictor whose classes are texts: the base is a prompt's, the null class the empty prompt.

    Which prompt each image shall show is ``wanted``, by its number; None is the empty prompt. So a tracked posterior is
    p(c_k | x_t, prompt). One forward for all that a guidance asks for. What a base prediction away from the negative
    prompts costs, in its attention, is not among the ``evaluations``.

    Args:
        model: the network.
        prompts: the prompts and the negative ones, encoded by ``model.encode``.
    """

    gives_attention = True

    def __init__(self, model: TextToImageModel, prompts: Prompts) -> None:
        def eps(x_t: Tensor, t: Tensor, number: Tensor | None) -> Tensor:
            assert number is not None  # they have an empty prompt
            pooled = None if prompts.pooled is None else prompts.pooled[number]
            predicted: Tensor = model(x_t, t, prompts.tokens[number], pooled)
            return predicted

        super().__init__(eps, prompts.null, prompts.forbidden)
        self.unet, self.texts = model.unet, prompts.tokens[prompts.forbidden]

    def predict(self, x_t: Tensor, t: int, needs: Needs = ALL, wanted: Tensor | None = None) -> Predictions:
        """See ``Predictor.predict``."""
        if needs.attending is None:
            return super().predict(x_t, t, needs, wanted)
        if wanted is None:  # named, so that the unconditional prediction stays a plain one
            wanted = torch.full((len(x_t),), self.null_class, device=x_t.device)
        active = active_images(x_t, self.classes, replace(needs, negatives=True))
        with away_from(self.unet, needs.attending, len(x_t), self.texts, active):  # the base's come first
            return super().predict(x_t, t, needs, wanted)
