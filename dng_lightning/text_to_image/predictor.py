"""From a text-conditioned model to the denoised predictions that a guidance needs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor

from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.sampling.predictors import ALL, ClassConditionalPredictor, Denoiser, Label, active_tensor
from dng_lightning.text_to_image.attention import ForbiddenTexts, edited_attention
from dng_lightning.text_to_image.model import TextToImageModel
from dng_lightning.text_to_image.network_call import NetworkCall
from dng_lightning.text_to_image.prompts import Prompts


class AttentionPredictor(ClassConditionalPredictor):
    """A class-conditional predictor whose base prediction may be made with its attention to the text edited.

    The attention to the forbidden texts is not part of the NFE.

    Args:
        denoiser: the network; where ``is_edited``, it evaluates texts with the forbidden ``texts`` behind them, inside
            ``editing``, those of the base images first.
        null_class: see ``ClassConditionalPredictor``.
        forbidden: see ``ClassConditionalPredictor``.
        class_labels: see ``ClassConditionalPredictor``.
        network: of diffusers, in the denoiser.
        texts: the forbidden ones.
    """

    provides = frozenset({"attention"})

    def __init__(
        self,
        denoiser: Denoiser,
        null_class: Label,
        forbidden: Sequence[Label],
        class_labels: Tensor | None,
        network: Any,
        texts: ForbiddenTexts,
    ) -> None:
        super().__init__(denoiser, null_class, forbidden, class_labels)
        self.network, self.texts = network, texts
        self.needs, self.images = Needs(), 0

    @property
    def is_edited(self) -> bool:
        """Whether the attention of the prediction that is being made is edited."""
        return self.needs.attention is not None

    def editing(self, own: int) -> AbstractContextManager[None]:
        """Edits the attention of the network to texts of ``own`` tokens, if it ``is_edited``."""
        if self.needs.attention is None:
            return nullcontext()
        active = active_tensor(self.needs)
        return edited_attention(self.network, self.needs.attention, self.images, own, self.texts, active)

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        if needs.attention is not None and (active := active_tensor(needs)) is not None and not active.any():
            needs = replace(needs, attention=None)
        self.needs, self.images = needs, len(x_t)
        return super().predict(x_t, level, needs)


class TextPredictor(AttentionPredictor):
    """A predictor whose classes are texts: the base is a prompt's, the null class the empty prompt.

    A tracked posterior is p(c_k | x_t, prompt).

    Args:
        model: the network.
        prompts: the prompts and the negative prompts, encoded by ``model.encode``.
        class_labels: the number of each image's prompt, (B,); None for the empty prompt.
    """

    def __init__(self, model: TextToImageModel, prompts: Prompts, class_labels: Tensor | None = None) -> None:
        def denoiser(x_t: Tensor, level: NoiseLevel, numbers: Tensor | None) -> Tensor:
            assert numbers is not None  # the null class is a prompt
            call = NetworkCall(model.layout, prompts.take(numbers))
            with self.editing(call.text.shape[1]):
                texts = call.with_forbidden(self.texts) if self.is_edited else call
                denoised: Tensor = model(x_t, level, texts.arguments)
            return denoised

        rows = [prompts.take([number]) for number in prompts.forbidden]
        texts = model.layout.forbidden(model.encoders[0], prompts.negatives, rows)
        super().__init__(denoiser, prompts.null, prompts.forbidden, class_labels, model.denoiser, texts)
