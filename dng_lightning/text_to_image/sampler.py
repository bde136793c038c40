"""Sampling from a text-to-image model without what the negative prompts name."""

from pathlib import Path

import torch
from torch import Tensor

from dng_lightning import diffusers_format
from dng_lightning.data.captioned_digits import CaptionedDigits
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.asked import Asked, Wanted
from dng_lightning.evaluation.kinds import Kinds
from dng_lightning.evaluation.runs import Labels
from dng_lightning.guidance import (
    CFGNegativePrompt,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    PositiveAndNegative,
)
from dng_lightning.guidance.serialization import display_name, display_name_with_scale
from dng_lightning.kernel import Variance
from dng_lightning.modules.checkpoint_settings import load_settings
from dng_lightning.modules.image_sampler import ImageSampler
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.sampling import Predictor, Sampler, WithObserver
from dng_lightning.text_to_image.attribute_classifier import AttributeClassifier
from dng_lightning.text_to_image.model import Precision, TextToImageModel
from dng_lightning.text_to_image.observers import PromptObserver
from dng_lightning.text_to_image.predictor import TextPredictor
from dng_lightning.text_to_image.prompt_classifier import PromptClassifier
from dng_lightning.text_to_image.prompts import check_guidance, texts_of

FREE = ClassifierFreeGuidance(scale=7.5)  # Stable Diffusion's usual scale
NEGATIVE_PROMPT = CFGNegativePrompt(scale=7.5)  # what diffusers' pipelines do with a negative prompt, on that scale

# What the authors took for "Medieval feast" (their table 3, as others quote it), on diffusers' usual scale.
AUTHORS = PositiveAndNegative(
    DynamicNegativeGuidance(
        27, TrackedPosterior(prior=0.01, temperature=0.2, offset=0.004, offset_inside=True, p_min=1e-6)
    ),
    7.5,
)


class TextToImageSampler(ImageSampler):
    """Draws images of a prompt, guided away from the negative prompts; for ``dng predict`` and ``dng test``.

    Args:
        checkpoint: the model: a folder in diffusers' format, or one of the Hugging Face hub.
        prompt: what to show; of several, each in turn, by the seed.
        negative_prompt: what to avoid, one text or several; null for nothing.
        guidance: the method of ``dng predict``; None for Dynamic Negative Guidance with classifier-free guidance on
            both branches, as the authors set it, or, where there is nothing to avoid, for ``unguided``.
        guidances: the methods that ``dng test`` compares on the same seeds; None for ``guidance`` alone.
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
        observer: looks at the images for a guidance that asks which negative prompts are emerging; None for the
            ``reader``, if there is one.
        reader: classifiers that say what images of coloured digits show, see ``AttributeClassifier.load``: they label
            the images of one prompt by what its negative prompts name, and say without any which images obey their prompt;
            None for no labels.
        compile: compile the U-Net (needs a C++ compiler on CPUs); pays from some hundred images on.

    Raises:
        SettingError: the checkpoint or the reader cannot be used, or a setting is out of its range.
    """

    reader: AttributeClassifier | None
    classifier: PromptClassifier | None

    def __init__(
        self,
        checkpoint: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        guidance: Guidance | None = None,
        guidances: list[Guidance] | None = None,
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
        reader: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(Sampler(steps, eta, variance))
        wanted, negative = texts_of(prompt, negative_prompt)
        self.unguided = unguided or FREE
        given = guidance or (AUTHORS if negative else self.unguided)
        self.model = TextToImageModel.load(checkpoint, precision)
        usual: list[Guidance] = [NEGATIVE_PROMPT] if negative else []
        found = diffusers_format.find(checkpoint, "DiffusionPipeline")
        self.checkpoint, self.home = checkpoint, found.parent
        self.guidance = load_settings(given, found.parent)
        self.guidances = [load_settings(method, found.parent) for method in guidances or []] or [self.guidance]
        self.compared = [load_settings(method, found.parent) for method in (usual if compared is None else compared)]
        self.schedule, self.chain_shape = self.model.schedule, self.model.latent_shape(height, width)
        self.schedule.levels(steps)  # refuses too many steps now, not after minutes
        looked_at = observer is not None or reader is not None
        avoiding = {"guidance": [self.guidance], "guidances": self.guidances, "compared": self.compared}
        for setting, method in ((setting, method) for setting, methods in avoiding.items() for method in methods):
            check_guidance(method, looked_at)
            if method.needs().avoids and not negative:
                raise SettingError(
                    f"{display_name(method)} avoids something: set negative_prompt, or {setting} to null"
                )
            method.start(torch.empty(1, *self.chain_shape), len(negative))  # refuses priors that do not fit
        if len(set(map(display_name_with_scale, self.compared))) < len(self.compared):
            raise SettingError("compared names a method twice: give them other scales, by which they are told apart")
        check_guidance(self.unguided, looked_at)
        if self.unguided.needs().avoids:
            raise SettingError(f"unguided is {display_name(self.unguided)}, which avoids something: name another")
        self.prompts = self.model.encode(wanted, negative)
        self.class_names, self.forbidden = (*wanted, *negative, ""), self.prompts.forbidden
        self.wanted = list(range(len(wanted)))
        pixels = self.model.pixels
        self.image_shape = (self.model.vae.config.out_channels, *(pixels * side for side in self.chain_shape[1:]))
        # out of the module tree: the trainer's precision is not for what judges images
        object.__setattr__(self, "reader", self._load(reader))
        object.__setattr__(self, "classifier", None)
        self._told: Kinds | None = None
        if self.reader is not None:
            self._told = asked = _asked(wanted, negative)
            judge = PromptClassifier(self.reader, asked) if isinstance(asked, Asked) else None
            object.__setattr__(self, "classifier", judge)
        self.judge_name = f"{Path(reader or '').name}-reader"
        self.observer = observer
        if observer is not None:
            observer.check(negative, self.image_shape)
        if save_memory:
            self.model.save_memory()
        if compile:
            self.model.unet.compile()
        self.draws = self.all_draws()

    def _load(self, reader: str | None) -> AttributeClassifier | None:
        """Who says what is in the images, if anybody."""
        if reader is None:
            return None
        if self.image_shape != CaptionedDigits.image_shape:
            raise SettingError(f"a reader knows images of {CaptionedDigits.image_shape}, not {self.image_shape}")
        return AttributeClassifier.load(reader)

    @property
    def folder(self) -> Path:
        """See ``ImageSampler.folder``."""
        return self.home

    @property
    def kinds(self) -> Kinds:
        """What the prompts are about, if a reader can tell."""
        return self._told or super().kinds

    @property
    def judge(self) -> PromptClassifier | None:
        """See ``ImageSampler.judge``."""
        return self.classifier

    def label(self, images: Tensor) -> Labels | None:
        """See ``ImageSampler.label``."""
        return self.classifier.label(images) if self.classifier else None

    def read(self, images: Tensor) -> Tensor | None:
        """See ``ImageSampler.read``."""
        return self.reader.read(images) if self.reader else None

    def predictor(self, guidance: Guidance, class_labels: Tensor | None = None) -> Predictor:
        """See ``ImageSampler.predictor``."""
        predictor: Predictor = TextPredictor(self.model, self.prompts.to(self.device), class_labels)
        if guidance.needs().observer is not None and (self.observer or self.classifier):
            predictor = WithObserver(predictor, self._observe)
        return predictor

    def _observe(self, denoised: Tensor) -> Tensor:
        """The probability that the decoded images show what each negative prompt names, (B, K)."""
        images = self.decode(denoised).clamp(-1, 1)
        if self.observer is not None:
            return self.observer.probabilities(images, self.prompts.negative)
        assert self.classifier
        return self.classifier.emerging(images)

    def decode(self, x_0: Tensor) -> Tensor:
        """What the model's decoder makes of the latents."""
        return self.model.decode(x_0)


def _asked(wanted: list[str], negative: list[str]) -> Asked | Wanted:
    """What the prompts mean to a reader.

    Raises:
        SettingError: it does not understand them, or cannot judge images of several by what they avoid.
    """
    if not negative:
        return Wanted.in_words(wanted)
    if len(wanted) > 1:
        raise SettingError("a reader judges what is avoided by one prompt: give one, or set reader to null")
    return Asked.in_words(wanted[0], negative)
