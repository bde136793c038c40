"""Sampling from a text-to-image model without what the negative prompts name."""

from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    PositiveAndNegative,
    SwappedNegative,
)
from dng_lightning.guidance.naming import named, titled
from dng_lightning.modules import pretrained
from dng_lightning.modules.image_sampler import ImageSampler
from dng_lightning.observation import WithObserver
from dng_lightning.predictors import Predictor
from dng_lightning.sampling import Sampler
from dng_lightning.schedule import Variance
from dng_lightning.text_to_image.model import Precision, TextToImageModel
from dng_lightning.text_to_image.observers import PromptObserver
from dng_lightning.text_to_image.predictor import TextPredictor
from dng_lightning.text_to_image.prompts import check_told, texts_of

FREE = ClassifierFreeGuidance(scale=7.5)  # Stable Diffusion's usual scale
SWAPPED = SwappedNegative(scale=7.5)  # what diffusers' pipelines do with a negative prompt, on that scale

# What the authors took for "Medieval feast" (their table 3, as others quote it), on diffusers' usual scale.
AUTHORS = PositiveAndNegative(
    DynamicNegativeGuidance(scale=27, prior=0.01, temperature=0.2, offset=0.004, offset_inside=True, floor=1e-6), 7.5
)


class TextToImageSampler(ImageSampler):
    """Draws images of a prompt, guided away from the negative prompts; for ``dng predict``.

    Args:
        checkpoint: the model: a folder in diffusers' format, or one of the Hugging Face hub.
        prompt: what to show; of several, each in turn, by the seed.
        negative_prompt: what to avoid, one text or several; null for nothing.
        guidance: the method; None for Dynamic Negative Guidance with classifier-free guidance on both branches, as the
            authors set it, or, where there is nothing to avoid, for ``unguided``.
        unguided: the method that knows no negative prompt, for the images that it is compared with; None for
            classifier-free guidance of scale 7.5.
        compared: further methods to compare them with; None for negative prompting as diffusers' pipelines do it, of
            scale 7.5, where there is something to avoid; [] for none.
        steps: sampling steps, in 1..T.
        eta: 1 is ancestral sampling, 0 is deterministic (DDIM).
        variance: of the noise at eta = 1, see ``Sampler``.
        height: of the images in pixels; None for what the model was trained on.
        width: the same.
        precision: of the U-Net and the text encoders, "fp32" or "bf16".
        save_memory: attend in slices, decode images one by one and in tiles; slower.
        observer: looks at the images for a guidance that asks which negative prompts are emerging; None for the others.

    Raises:
        SettingError: the checkpoint cannot be used, or a setting is out of its range.
    """

    def __init__(
        self,
        checkpoint: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        guidance: Guidance | None = None,
        unguided: Guidance | None = None,
        compared: list[Guidance] | None = None,
        steps: int = 50,
        eta: float = 1.0,
        variance: Variance = "beta_tilde",
        height: int | None = None,
        width: int | None = None,
        precision: Precision = "fp32",
        save_memory: bool = False,
        observer: PromptObserver | None = None,
    ) -> None:
        super().__init__(Sampler(steps, eta, variance))
        wanted, negative = texts_of(prompt, negative_prompt)
        self.unguided = unguided or FREE
        given = guidance or (AUTHORS if negative else self.unguided)
        self.model = TextToImageModel.load(checkpoint, precision)
        usual: list[Guidance] = [SWAPPED] if negative else []
        index = pretrained.find(checkpoint)
        self.guidance = given.beside(index)
        self.compared = [method.beside(index) for method in (usual if compared is None else compared)]
        self.schedule, self.chain_shape = self.model.schedule, self.model.latent_shape(height, width)
        self.schedule.levels(steps)  # refuses too many steps now, not after minutes
        for method, setting in ((self.guidance, "guidance"), *((method, "compared") for method in self.compared)):
            check_told(method, observer is not None)
            if method.needs.avoids and not negative:
                raise SettingError(f"{named(method)} avoids something: set negative_prompt, or {setting} to null")
            method.start(Tensor(1, *self.chain_shape), len(negative))  # refuses priors that do not fit
        if len(set(map(titled, self.compared))) < len(self.compared):
            raise SettingError("compared names a method twice: give them other scales, by which they are told apart")
        check_told(self.unguided, observer is not None)
        if self.unguided.needs.avoids:
            raise SettingError(f"unguided is {named(self.unguided)}, which avoids something: name another")
        self.prompts = self.model.encode(wanted, negative)
        self.class_names, self.forbidden = (*wanted, *negative, ""), self.prompts.forbidden
        self.wanted, self.classifier = list(range(len(wanted))), None
        self.observer = observer
        if observer is not None:
            _, rows, columns = self.chain_shape
            observer.check(negative, (3, rows * self.model.pixels, columns * self.model.pixels))
        if save_memory:
            self.model.save_memory()

    def predictor(self, guidance: Guidance | None = None) -> Predictor:
        """See ``ImageSampler.predictor``."""
        predictor, observer = TextPredictor(self.model, self.prompts.to(self.device)), self.observer
        if observer is None or not (guidance or self.guidance).needs.observed:
            return predictor

        def observe(x0_hat: Tensor) -> Tensor:
            return observer.probabilities(self.decoded(x0_hat).clamp(-1, 1), self.prompts.negative)

        return WithObserver(predictor, observe, self.schedule)

    def decoded(self, x_0: Tensor) -> Tensor:
        """What the model's decoder makes of the latents."""
        return self.model.decode(x_0)
