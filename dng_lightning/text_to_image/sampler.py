"""Sampling from a text-to-image model, away from negative prompts."""

from pathlib import Path

from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.guidance import (
    CFGNegativePrompt,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    PositiveAndNegative,
)
from dng_lightning.kernel import Variance
from dng_lightning.modules.image_sampler import ChainSampler
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.pretrained import diffusers_format
from dng_lightning.sampling import Predictor, Sampler, WithObserver
from dng_lightning.text_to_image.methods import set_methods
from dng_lightning.text_to_image.model import TextToImageModel
from dng_lightning.text_to_image.observers import PromptJudge, PromptObserver, PromptReader
from dng_lightning.text_to_image.optional_deps import Precision
from dng_lightning.text_to_image.predictor import TextPredictor
from dng_lightning.text_to_image.prompts import texts_of

SCALE = 7.5  # of classifier-free guidance, diffusers' default for Stable Diffusion

# the authors' settings for "Medieval feast" (their table 3, as others quote it)
AUTHORS = TrackedPosterior(prior=0.01, temperature=0.2, offset=0.004, offset_inside=True, p_min=1e-6)


class TextToImageSampler(ChainSampler):
    """Draws images of a prompt, guided away from the negative prompts; for ``dng predict`` and ``dng test``.

    Args:
        checkpoint: a folder in diffusers' format, or a model of the Hugging Face hub.
        prompt: the prompt, or several, which the images take in turn.
        negative_prompt: the text or texts to avoid; null for none.
        guidance: the method of ``dng predict``; None for the first of ``guidances``, or Dynamic Negative Guidance with
            classifier-free guidance on both branches, in the authors' settings, or, without a negative prompt,
            ``unguided``.
        guidances: the methods that ``dng test`` compares on the same seeds; None for ``guidance`` alone.
        unguided: the method without a negative prompt that draws the images to compare with; None for classifier-free
            guidance of scale 7.5.
        baselines: further methods to compare with; None for the negative prompting of diffusers' pipelines, of scale
            7.5, where there is a negative prompt; [] for none.
        steps: sampling steps, in 1..T.
        eta: 1 is ancestral sampling, 0 is deterministic (DDIM).
        variance: of the noise at eta = 1, see ``Sampler``.
        height: height of the images in pixels; None for that of the training.
        width: width of the images in pixels; None for that of the training.
        precision: precision of the denoiser and the text encoders, "fp32" or "bf16".
        save_memory: attend in slices, decode images one by one and in tiles; slower.
        observer: observer of the denoised images, for a guidance that needs one; None for the ``reader``, if any.
        reader: labels the images of one prompt by what its negative prompts name, or, without negative prompts,
            measures which images show what their prompt asks for; None for no labels.
        compile: compile the denoiser (needs a C++ compiler on CPUs); pays from some hundred images on.
        order: 2 for DPM-Solver++ (2M), in its SDE form at eta = 1 and its ODE form at 0; 1 for DDPM, DDIM and Euler.

    Raises:
        SettingError: the checkpoint or the reader cannot be used, or a setting is out of its range.
    """

    folder: Path = Path()
    judge: PromptJudge | None = None

    def __init__(
        self,
        checkpoint: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        guidance: Guidance | None = None,
        guidances: list[Guidance] | None = None,
        unguided: Guidance | None = None,
        baselines: list[Guidance] | None = None,
        steps: int = 50,
        eta: float = 1.0,
        variance: Variance = "beta_tilde",
        height: int | None = None,
        width: int | None = None,
        precision: Precision = "fp32",
        save_memory: bool = False,
        observer: PromptObserver | None = None,
        reader: PromptReader | None = None,
        compile: bool = False,
        order: int = 1,
    ) -> None:
        super().__init__(Sampler(steps, eta, variance, order=order))
        prompts, negatives = texts_of(prompt, negative_prompt)

        # The model
        self.model = TextToImageModel.load(checkpoint, precision)
        self.checkpoint, self.folder = checkpoint, diffusers_format.find(checkpoint).parent
        self.schedule, self.chain_shape = self.model.schedule, self.model.latent_shape(height, width)
        self.schedule.levels(steps)  # refuses too many steps now, not after minutes
        h, w = (self.model.pixels * side for side in self.chain_shape[1:])
        self.image_shape = (self.model.channels, h, w)
        if save_memory:
            self.model.save_memory()
        if compile:
            self.model.denoiser.compile()

        # The guidances
        self.unguided = unguided or ClassifierFreeGuidance(SCALE)
        default = PositiveAndNegative(DynamicNegativeGuidance(27, AUTHORS), SCALE) if negatives else self.unguided
        usual: list[Guidance] = [CFGNegativePrompt(SCALE)] if negatives else []
        seeing = observer is not None or reader is not None
        given = (default, guidance, guidances, usual if baselines is None else baselines)
        set_methods(self, *given, len(negatives), self.chain_shape, seeing)

        # The texts, the observer and the reader
        self.prompts = self.model.encode(prompts, negatives)
        self.class_names, self.forbidden = (*prompts, *negatives, ""), self.prompts.forbidden
        self.class_labels = list(range(len(prompts)))
        self.observer, self.reader, self.prompt_label_space = observer, reader, None
        if observer is not None:
            observer.check(negatives, self.image_shape)
        if reader is not None:
            if self.image_shape != reader.image_shape:
                raise SettingError(f"a reader knows images of {reader.image_shape}, not {self.image_shape}")
            self.prompt_label_space, judge = reader.understand(prompts, negatives)
            self.keep_apart(judge=judge)
        self.draws = self.all_draws()

    @property
    def label_space(self) -> LabelSpace:
        """What the prompts are about, if there is a reader."""
        return self.prompt_label_space or super().label_space

    def read(self, images: Tensor) -> Tensor | None:
        """See ``ImageSampler.read``."""
        return self.reader.read(images) if self.reader else None

    def networks(self) -> dict[str, nn.Module | None]:
        """See ``ImageSampler.networks``."""
        reader = self.reader.net if self.reader else None
        return {"checkpoint": self.model, "text encoder": self.model.encoders[0].text_encoder, "reader": reader}

    def predictor(self, guidance: Guidance, class_labels: Tensor | None = None) -> Predictor:
        """See ``ChainSampler.predictor``."""
        predictor: Predictor = TextPredictor(self.model, self.prompts.to(self.device), class_labels)
        if guidance.needs().observer is not None and (self.observer or self.judge):
            predictor = WithObserver(predictor, self._observe)
        return predictor

    def _observe(self, denoised: Tensor) -> Tensor:
        """The probability that the decoded images show what each negative prompt names, (B, K)."""
        images = self.decode(denoised).clamp(-1, 1)
        if self.observer is not None:
            return self.observer.probabilities(images, self.prompts.negatives)
        assert self.judge
        return self.judge.probabilities(images)

    def decode(self, x_0: Tensor) -> Tensor:
        """The decoded latents."""
        return self.model.decode(x_0)
