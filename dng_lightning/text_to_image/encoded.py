"""Texts as a pipeline of diffusers' encodes them, and the predictions of a U-Net that is told each image's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance, Needs, Predictions
from dng_lightning.guidance.naming import named
from dng_lightning.predictors import ALL, Predictor, active_images, levels, stacked
from dng_lightning.parametrization import Prediction
from dng_lightning.schedule import NoiseSchedule


@dataclass(frozen=True)
class Encoded:
    """Texts as a U-Net is told them.

    Attributes:
        tokens: (B, length, width).
        pooled: each as a whole, (B, width); None for models that are not told (all but SDXL).
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> "Encoded":
        return Encoded(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    @staticmethod
    def joined(parts: Sequence["Encoded"]) -> "Encoded":
        """All of them in a row."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Encoded(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


class Empty:
    """What a pipeline tells its U-Net where there is no negative prompt.

    Args:
        encoded: what its ``encode_prompt`` makes of the prompt "" and of no negative one: tokens of either, and, for
            SDXL, each as a whole.

    Attributes:
        null: the second of them, a single text: the unconditional one.
    """

    def __init__(self, encoded: Sequence[Tensor]) -> None:
        text, none, *pooled = encoded
        self.null = Encoded(none, pooled[1] if pooled else None)
        self.forms = (text, none)  # SDXL is told zeros in the place of the second

    def check(self, guidance: Guidance, negatives: Encoded | None) -> None:
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
        if guidance.needs.negatives and not said.all():
            raise SettingError(f"{named(guidance)} avoids something: call the pipeline with a negative_prompt")
        if said.any() and not guidance.needs.negatives:
            raise SettingError(f"{named(guidance)} avoids nothing: call the pipeline without a negative_prompt")


class EncodedPredictor(Predictor):
    """The base is that of each image's prompt, the one forbidden condition its negative prompt. One forward for all.

    Args:
        network: ``network(x_t, timesteps, encoded)``, of as many images as texts.
        schedule: its noise levels.
        prediction: what it predicts.
        prompts: one an image.
        negatives: one an image; None where none is asked for.
        null: the unconditional text, a single one.
    """

    classes = 1

    def __init__(
        self,
        network: Callable[[Tensor, Tensor, Encoded], Tensor],
        schedule: NoiseSchedule,
        prediction: Prediction,
        prompts: Encoded,
        negatives: Encoded | None,
        null: Encoded,
    ) -> None:
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.prompts, self.negatives, self.null = prompts, negatives, null

    def predict(self, x_t: Tensor, t: int, needs: Needs = ALL, wanted: Tensor | None = None) -> Predictions:
        """See ``Predictor.predict``; what is wanted are the prompts, whatever ``wanted`` says."""
        every = torch.arange(len(x_t), device=x_t.device)
        asked = [(every, self.prompts)] + ([(every, self.null[torch.zeros_like(every)])] if needs.null else [])
        active = active_images(x_t, self.classes, needs)
        if self.negatives is not None:
            asked += [(images, self.negatives[images]) for images in active if len(images)]
        images, texts = torch.cat([rows for rows, _ in asked]), Encoded.joined([text for _, text in asked])
        output = self.network(x_t[images], levels(images, t) - 1, texts).float()
        eps = self.schedule.to_eps(output, x_t[images], levels(images, t), self.prediction)
        self.evaluations += len(eps)
        base, *others = torch.split(eps, [len(rows) for rows, _ in asked])
        null = others.pop(0) if needs.null else None
        return Predictions(base, stacked(base, active, others), null=null, active=needs.active)
