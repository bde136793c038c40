"""Sampling from a trained model without the forbidden classes."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dng_lightning import diffusers_format
from dng_lightning.class_labels import labels_of
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.runs import EvaluationRun, Samples
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, Unguided
from dng_lightning.kernel import Variance
from dng_lightning.modules.checkpoint_settings import load_settings
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.modules.diffusion import DiffusionModule
from dng_lightning.modules.image_sampler import Draw, ImageSampler
from dng_lightning.modules.matching import (
    check_classes,
    check_classifier,
    check_needs,
    check_negatives,
    check_noisy,
    check_retrained,
    name_classes,
)
from dng_lightning.sampling import (
    ClassConditionalPredictor,
    NetworkPairPredictor,
    Predictor,
    Sampler,
    WithClassifier,
    WithObserver,
)

Classes = str | int | list[str | int]


class GuidedSampler(ImageSampler):
    """Draws images from a checkpoint, guided away from the forbidden classes; for ``dng predict`` and ``dng test``.

    Args:
        checkpoint: the model to sample from: a ``.ckpt``, a folder with a ``model.ckpt``, a shipped name, or an
            unconditional model in diffusers' format, a folder or one of the Hugging Face hub.
        forbidden: the class or classes to avoid, by name or number.
        guidance: the method of ``dng predict``; None for Dynamic Negative Guidance with its defaults.
        guidances: the methods that ``dng test`` compares on the same seeds; None for ``guidance`` alone.
        steps: sampling steps, in 1..T.
        eta: 1 is ancestral sampling, 0 is deterministic (DDIM).
        variance: of the noise at eta = 1, see ``Sampler``.
        clip: bound on the denoised prediction, None for none.
        wanted: class or classes that the images shall show in turn, "all" for each class in turn; None for
            unconditional images.
        retrained: a model trained without the forbidden classes, for ``dng test`` to compare with; None for none.
        compile: compile the networks (needs a C++ compiler on CPUs); pays from some hundred images on.
        negative_checkpoints: a single-class model for each forbidden class (the paper's network pair); None to ask
            ``checkpoint`` itself.
        classifier: checkpoint of the classifier that labels the images; None for no labels.
        observer: checkpoint of the classifier that looks at the denoised images on the way, for a guidance that asks
            what is emerging; None for ``classifier``, which then judges its own work.
        noisy_classifier: checkpoint of a noise-conditional classifier, for a guidance that is told p(c | x_t); None
            for the others.

    Attributes:
        beside: the checkpoint whose folder holds the guidance's calibration.
        classifier: labels the images.
        observer: looks at the denoised images.
        noisy_classifier: gives p(c | x_t).

    Raises:
        SettingError: a checkpoint cannot be used, a class is unknown to it, or a setting is out of its range.
    """

    classifier: ClassifierModule | None
    observer: ClassifierModule | None
    noisy_classifier: ClassifierModule | None

    def __init__(
        self,
        checkpoint: str = "mnist",
        forbidden: Classes = "0",
        guidance: Guidance | None = None,
        guidances: list[Guidance] | None = None,
        steps: int = 100,
        eta: float = 1.0,
        variance: Variance = "beta_tilde",
        clip: float | None = None,
        wanted: Classes | Literal["all"] | None = None,
        negative_checkpoints: list[str] | None = None,
        classifier: str | None = "mnist-classifier",
        observer: str | None = None,
        noisy_classifier: str | None = None,
        retrained: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(Sampler(steps, eta, variance, clip))
        self.unguided = Unguided()
        self.model = DiffusionModule.load(checkpoint)
        self.schedule, self.chain_shape = self.model.schedule, self.model.image_shape
        self.beside = diffusers_format.find((negative_checkpoints or [checkpoint])[0])
        folder = self.beside.parent
        self.guidance: Guidance = load_settings(guidance or DynamicNegativeGuidance(), folder)
        self.guidances: list[Guidance] = [load_settings(method, folder) for method in guidances or []] or [
            self.guidance
        ]
        self.model.schedule.levels(steps)  # refuses too many steps now, not after minutes
        negatives = [DiffusionModule.load(name) for name in negative_checkpoints or []]
        self.negatives = torch.nn.ModuleList(negatives)
        # out of the module tree: the trainer's precision is not for what judges images
        object.__setattr__(self, "classifier", ClassifierModule.load(classifier) if classifier else None)
        object.__setattr__(self, "observer", ClassifierModule.load(observer) if observer else None)
        self.observer_name = diffusers_format.name_of(observer) if observer else None
        lookers = [looker for looker in (self.classifier, self.observer) if looker is not None]
        name_classes(self.model, [*negatives, *lookers], checkpoint)
        self.image_shape, self.class_names = self.model.image_shape, self.model.class_names
        seen = self.model.seen_classes
        self.forbidden = labels_of(
            forbidden, self.class_names, range(len(self.class_names)) if self.negatives else seen
        )
        check_negatives(negatives, self.model, checkpoint, self.forbidden)
        for method in [self.guidance, *self.guidances]:
            check_needs(method, observer or classifier, noisy_classifier, wanted not in (None, []))
            method.start(torch.empty(1, *self.image_shape), len(self.forbidden))  # refuses priors that do not fit
        wanted = [] if wanted is None else list(map(str, seen)) if wanted == "all" else wanted
        self.wanted = labels_of(wanted, self.class_names, seen)
        check_classes(self.forbidden, self.wanted, [self.guidance, *self.guidances])
        if self.wanted and not self.model.null_class:
            raise SettingError(f"{checkpoint} is unconditional: it cannot be asked for a class")
        self.checkpoint, self.judge_name = checkpoint, diffusers_format.name_of(classifier) if classifier else ""
        if self.classifier:
            check_classifier(self.classifier, self.model, f"classifier {classifier}", checkpoint)
        if self.observer:
            check_classifier(self.observer, self.model, f"observer {observer}", checkpoint)
        noisy = ClassifierModule.load(noisy_classifier, noisy=True) if noisy_classifier else None
        object.__setattr__(self, "noisy_classifier", noisy)
        self.noisy_classifier_name = diffusers_format.name_of(noisy_classifier) if noisy_classifier else None
        if self.noisy_classifier:
            check_noisy(self.noisy_classifier, self.model, str(noisy_classifier), checkpoint)
        self.retrained = DiffusionModule.load(retrained) if retrained else None
        self.retrained_name = diffusers_format.name_of(retrained) if retrained else None
        if self.retrained:
            check_retrained(self.retrained, self.model, str(retrained), checkpoint, self.forbidden)
        if compile:
            for network in (self.model, self.retrained, *self.negatives):
                if network is not None:
                    network.net.compile()
        self.draws = self.all_draws()

    @property
    def folder(self) -> Path:
        """See ``ImageSampler.folder``."""
        return diffusers_format.find(self.checkpoint).parent

    @property
    def judge(self) -> ClassifierModule | None:
        """See ``ImageSampler.judge``."""
        return self.classifier

    def predictor(self, guidance: Guidance, class_labels: Tensor | None = None) -> Predictor:
        """See ``ImageSampler.predictor``."""
        null = self.model.null_class
        predictor: Predictor = (
            NetworkPairPredictor(self.model, list(self.negatives), null or None, class_labels)
            if self.negatives
            else ClassConditionalPredictor(self.model, null, self.forbidden, class_labels)
        )
        needs = guidance.needs()
        if needs.classifier and self.noisy_classifier:
            predictor = WithClassifier(predictor, self.noisy_classifier.log_posterior, self.forbidden)
        if needs.observer is not None:
            predictor = WithObserver(predictor, self._observe)
        return predictor

    def _observe(self, denoised: Tensor) -> Tensor:
        """The observer's probabilities of the forbidden classes, (B, K)."""
        observer = self.observer or self.classifier
        assert observer  # as the constructor checked
        return observer.probabilities(denoised.clamp(-1, 1))[:, self.forbidden]

    def all_draws(self) -> list[Draw]:
        """Unguided images, those of each guidance, and those of the retrained model."""
        draws = super().all_draws()[:1]
        for guidance in self.guidances:
            if not isinstance(guidance, Unguided):
                needs = guidance.needs()
                networks = {
                    "checkpoint": self.noisy_classifier_name if needs.classifier else None,
                    "observer": self.observer_name if needs.observer is not None else None,
                }
                draws.append(Draw.of(guidance, **networks))
        if self.retrained:
            run = EvaluationRun.reference("Retrained", checkpoint=str(self.retrained_name))
            draws.append(Draw(run, Unguided(), retrained=True))
        return draws

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Samples]:
        """The images of a batch of seeds, from the retrained model where the draw says so."""
        if not self.draws[dataloader_idx].retrained or self.retrained is None:
            return super().test_step(batch, batch_idx, dataloader_idx)
        predictor = NetworkPairPredictor(self.retrained, [], self.retrained.null_class or None)
        return {"samples": self.draw_from(predictor, batch.tolist(), Unguided())}
