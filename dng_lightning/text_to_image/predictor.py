"""From a text-conditioned latent U-Net to the denoised predictions that a guidance needs."""

from dataclasses import replace

import torch
from torch import Tensor

from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.sampling.predictors import ALL, ClassConditionalPredictor, active_images
from dng_lightning.text_to_image.attention import away_from
from dng_lightning.text_to_image.model import TextToImageModel
from dng_lightning.text_to_image.prompts import Prompts


class TextPredictor(ClassConditionalPredictor):
    """A class-conditional predictor whose classes are texts: the base is a prompt's, the null class the empty prompt.

    Which prompt each image shall show is its class label, by the prompt's number; None is the empty prompt. So a
    tracked posterior is p(c_k | x_t, prompt). The attention of a base prediction to the negative prompts (NAG) is not
    part of the NFE.

    Args:
        model: the network.
        prompts: the prompts and the negative ones, encoded by ``model.encode``.
        class_labels: the prompt of each image, (B,); None for the empty one.
    """

    provides = frozenset({"attention"})

    def __init__(self, model: TextToImageModel, prompts: Prompts, class_labels: Tensor | None = None) -> None:
        def denoiser(x_t: Tensor, level: NoiseLevel, number: Tensor | None) -> Tensor:
            assert number is not None  # the null class is a prompt
            pooled = None if prompts.pooled is None else prompts.pooled[number]
            denoised: Tensor = model(x_t, level, prompts.tokens[number], pooled)
            return denoised

        super().__init__(denoiser, prompts.null, prompts.forbidden, class_labels)
        self.unet, self.texts = model.unet, prompts.tokens[prompts.forbidden]

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        if needs.attention is None:
            return super().predict(x_t, level, needs)
        given = self.class_labels
        if given is None:  # named, so that the unconditional prediction stays a plain one
            self.class_labels = torch.full((len(x_t),), self.null_class, device=x_t.device)
        active = active_images(x_t, self.conditions, replace(needs, negatives=True))
        try:
            with away_from(self.unet, needs.attention, len(x_t), self.texts, active):  # the base's come first
                return super().predict(x_t, level, needs)
        finally:
            self.class_labels = given
