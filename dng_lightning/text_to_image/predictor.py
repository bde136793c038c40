"""From a text-conditioned latent U-Net to the denoised predictions that a guidance needs."""

from dataclasses import replace

from torch import Tensor

from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.sampling.predictors import ALL, ClassConditionalPredictor, active_images
from dng_lightning.text_to_image.attention import edited_attention
from dng_lightning.text_to_image.model import TextToImageModel
from dng_lightning.text_to_image.prompts import Prompts


class TextPredictor(ClassConditionalPredictor):
    """A class-conditional predictor whose classes are texts: the base is a prompt's, the null class the empty prompt.

    A tracked posterior is p(c_k | x_t, prompt). The attention of a base prediction to the negative prompts (NAG) is not
    part of the NFE.

    Args:
        model: the network.
        prompts: the prompts and the negative prompts, encoded by ``model.encode``.
        class_labels: the number of each image's prompt, (B,); None for the empty prompt.
    """

    provides = frozenset({"attention"})

    def __init__(self, model: TextToImageModel, prompts: Prompts, class_labels: Tensor | None = None) -> None:
        def denoiser(x_t: Tensor, level: NoiseLevel, numbers: Tensor | None) -> Tensor:
            assert numbers is not None  # the null class is a prompt
            denoised: Tensor = model(x_t, level, prompts.texts[numbers])
            return denoised

        super().__init__(denoiser, prompts.null, prompts.forbidden, class_labels)
        self.unet, self.texts = model.unet, prompts.texts.tokens[prompts.forbidden]

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        if needs.attention is None:
            return super().predict(x_t, level, needs)
        active = active_images(x_t, self.conditions, replace(needs, negatives=True))
        with edited_attention(self.unet, needs.attention, len(x_t), self.texts, active):  # the base images come first
            return super().predict(x_t, level, needs)
