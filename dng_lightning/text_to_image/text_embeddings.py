"""Texts as a pipeline of diffusers' encodes them, and the predictions of a U-Net that is told each image's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import Prediction, denoised_of
from dng_lightning.sampling.predictors import ALL, Predictor, active_images, active_tensor, stack_negatives


@dataclass(frozen=True)
class TextEmbeddings:
    """Texts as a U-Net is told them.

    Attributes:
        tokens: (B, length, width).
        pooled: each as a whole, (B, width); None for models that are not told (all but SDXL).
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> "TextEmbeddings":
        return TextEmbeddings(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    @staticmethod
    def joined(parts: Sequence["TextEmbeddings"]) -> "TextEmbeddings":
        """All of them in a row."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextEmbeddings(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


class NullEmbedding:
    """What a pipeline tells its U-Net where there is no negative prompt.

    Args:
        encoded: what its ``encode_prompt`` makes of the prompt "" and of no negative one: tokens of either, and, for
            SDXL, each as a whole.

    Attributes:
        null: the second of them, a single text: the unconditional one.
    """

    def __init__(self, encoded: Sequence[Tensor]) -> None:
        text, none, *pooled = encoded
        self.null = TextEmbeddings(none, pooled[1] if pooled else None)
        self.forms = (text, none)  # SDXL is told zeros in the place of the second

    def check(self, guidance: Guidance, negatives: TextEmbeddings | None) -> None:
        """Refuse a guidance that is not told what to avoid, or is and avoids nothing.

        Args:
            guidance: the method.
            negatives: what the pipeline has for negative prompts, one an image; None where it has none.

        Raises:
            SettingError: see above.
        """
        said = torch.zeros(1, dtype=torch.bool)
        if negatives is not None:  # half precision rounds otherwise in a batch of another size
            forms = [(negatives.tokens - form, 1e-2 * form.abs().max()) for form in self.forms]
            said = torch.stack([apart.abs().amax((1, 2)) > least for apart, least in forms]).all(0)
        if guidance.needs().negatives and not said.all():
            raise SettingError(f"{display_name(guidance)} avoids something: call the pipeline with a negative_prompt")
        if said.any() and not guidance.needs().negatives:
            raise SettingError(f"{display_name(guidance)} avoids nothing: call the pipeline without a negative_prompt")


class EmbeddingPredictor(Predictor):
    """The base is that of each image's prompt, the one forbidden condition its negative prompt. One forward for all.

    Args:
        network: ``network(x_t, timesteps, encoded)``, of as many images as texts.
        prediction: what it predicts.
        prompts: one an image.
        negatives: one an image; None where none is asked for.
        null: the unconditional text, a single one.
    """

    conditions = 1

    def __init__(
        self,
        network: Callable[[Tensor, Tensor, TextEmbeddings], Tensor],
        prediction: Prediction,
        prompts: TextEmbeddings,
        negatives: TextEmbeddings | None,
        null: TextEmbeddings,
    ) -> None:
        self.network, self.prediction = network, prediction
        self.prompts, self.negatives, self.null = prompts, negatives, null
        self.class_labels = torch.empty(0)  # each image has its prompt

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        every = torch.arange(len(x_t), device=x_t.device)
        asked = [(every, self.prompts)] + ([(every, self.null[torch.zeros_like(every)])] if needs.null else [])
        active = active_images(x_t, self.conditions, needs)
        if self.negatives is not None:
            asked += [(images, self.negatives[images]) for images in active if len(images)]
        images, texts = torch.cat([rows for rows, _ in asked]), TextEmbeddings.joined([text for _, text in asked])
        shown = x_t[images]
        timesteps = torch.full((len(shown),), level.timestep, device=x_t.device)
        output = self.network(shown, timesteps, texts).float()
        denoised = denoised_of(output, shown, level.alpha, level.sigma, self.prediction)
        self.nfe += len(denoised)
        base, *others = torch.split(denoised, [len(rows) for rows, _ in asked])
        null = others.pop(0) if needs.null else None
        return Predictions(base, stack_negatives(base, active, others), null=null, active=active_tensor(needs))
