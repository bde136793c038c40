"""Sampling from a trained model without the forbidden classes."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dng_lightning.class_labels import labels_of
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.runs import EvaluationRun, Samples
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, Unguided
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.kernel import Variance
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.modules.checkpoint_settings import load_settings
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.modules.compatibility import (
    DIFFERENCES,
    check_classes,
    check_needs,
    check_negatives,
    check_null_class,
    check_probe,
    check_same,
    name_classes,
    own_classifier,
)
from dng_lightning.modules.image_sampler import ChainSampler, Draw
from dng_lightning.modules.judges import AnyClassifier, classifier_name, load_classifier, sort_into
from dng_lightning.modules.models import load_model, path_of
from dng_lightning.modules.probe import ProbeModule
from dng_lightning.pretrained import PretrainedModel
from dng_lightning.sampling import (
    ClassConditionalPredictor,
    NetworkPairPredictor,
    Predictor,
    Sampler,
    WithClassifier,
    WithObserver,
    WithProbe,
)
from dng_lightning.storage import resources

Classes = str | int | list[str | int]


class GuidedSampler(ChainSampler):
    """Samples from a model without the forbidden classes, for ``dng predict`` and ``dng test``.

    Args:
        checkpoint: the model: a ``.ckpt``, a folder with a ``model.ckpt``, a shipped name, a model in diffusers' format
            (a folder or a name of the Hugging Face hub), or a model of another library by class path (``pretrained``).
        forbidden: the class or classes to avoid, by name or number; None or [] for none.
        guidance: guidance method of ``dng predict``; None for the first of ``guidances``, or Dynamic Negative Guidance
            with its defaults.
        guidances: guidance methods that ``dng test`` compares on the same seeds; None for ``guidance`` only.
        steps: number of sampling steps, in 1..T.
        eta: 1 is ancestral sampling, 0 is deterministic (DDIM).
        variance: variance of the noise at eta = 1, see ``Sampler``.
        clip: bound on the denoised prediction, .inf for none; None for the scheduler's (``clip_sample``) if the
            checkpoint is in diffusers' format, else for none.
        order: 1 for DDPM, DDIM and Euler; 2 for DPM-Solver++ (2M), as an SDE at eta = 1 and an ODE at 0.
        class_labels: class or classes to condition on, which the images take in turn; "all" for all classes; None for
            unconditional images.
        retrained_checkpoint: model trained without the forbidden classes, a baseline of ``dng test``; None for none.
        compile: compile the networks (needs a C++ compiler on CPUs); pays off from some hundred images on.
        negative_checkpoints: a single-class model for each forbidden class (the paper's network pair); None for the
            conditional predictions of ``checkpoint``.
        classifier: classifier that labels the images: a checkpoint, or a classifier of another library by name
            (``modules.judges.load_classifier``) or class path (``judges``); None for no labels; "auto" for
            ``<checkpoint>-classifier`` if there is one, and for ``mnist-classifier`` on MNIST's digits.
        observer: classifier of the denoised images during sampling, for an ``ObserverPosterior`` or
            ``AdaptiveNegative``; None for ``classifier``, whose labels are then not independent of the guidance.
        noise_conditional_classifier: checkpoint of a classifier of noisy images, for a guidance or posterior that needs
            p(c | x_t); None for none.
        probe: checkpoint of a probe of the features of ``checkpoint``, for a ``ProbePosterior``; None for none.

    Attributes:
        calibration_checkpoint: checkpoint whose folder has the calibration of tracked posteriors.
        probe_folder: folder that has the calibration of the probe; None without a probe.
        classifier: labels the images.
        observer: classifies the denoised images.
        noise_conditional_classifier: gives p(c | x_t).
        probe: gives p(c | x_t) from features.

    Raises:
        SettingError: a checkpoint cannot be used, has no such class, or a setting is out of its range.
    """

    classifier: AnyClassifier | None
    observer: AnyClassifier | None
    noise_conditional_classifier: ClassifierModule | None
    probe: ProbeModule | None

    def __init__(
        self,
        checkpoint: PretrainedModel | str = "mnist",
        forbidden: Classes | None = "0",
        guidance: Guidance | None = None,
        guidances: list[Guidance] | None = None,
        steps: int = 100,
        eta: float = 1.0,
        variance: Variance = "beta_tilde",
        clip: float | None = None,
        class_labels: Classes | Literal["all"] | None = None,
        negative_checkpoints: list[PretrainedModel | str] | None = None,
        classifier: PretrainedClassifier | str | None = "auto",
        observer: PretrainedClassifier | str | None = None,
        noise_conditional_classifier: str | None = None,
        probe: str | None = None,
        retrained_checkpoint: str | None = None,
        compile: bool = False,
        order: int = 1,
    ) -> None:
        model, given_checkpoint = load_model(checkpoint), checkpoint
        checkpoint = checkpoint.path if isinstance(checkpoint, PretrainedModel) else checkpoint
        super().__init__(Sampler(steps, eta, variance, model.clip if clip is None else clip, order))

        # The networks
        classifier = own_classifier(checkpoint, model) if classifier == "auto" else classifier
        self.checkpoint, self.model = checkpoint, model
        self.schedule, self.chain_shape = self.model.schedule, self.model.image_shape
        self.schedule.levels(steps)  # raises for too many steps
        negatives = [load_model(name) for name in negative_checkpoints or []]
        self.negatives = torch.nn.ModuleList(negatives)
        self.retrained = load_model(retrained_checkpoint) if retrained_checkpoint else None
        self.keep_apart(
            classifier=load_classifier(classifier) if classifier else None,
            observer=load_classifier(observer) if observer else None,
            noise_conditional_classifier=ClassifierModule.load(noise_conditional_classifier, noisy=True)
            if noise_conditional_classifier
            else None,
            probe=ProbeModule.load(probe) if probe else None,
        )
        self.classifier_name = classifier
        self.judge_name = classifier_name(self.classifier, classifier)
        self.observer_name = classifier_name(self.observer, observer)
        self.noise_conditional_classifier_name, self.probe_name, self.retrained_name = (
            resources.name_of(name) if name else ""
            for name in (noise_conditional_classifier, probe, retrained_checkpoint)
        )

        # The guidances, with the calibration in the checkpoint's folder and their reference images
        self.path = path_of(given_checkpoint, model)
        self.calibration_checkpoint = (
            path_of(negative_checkpoints[0], negatives[0]) if negative_checkpoints else self.path
        )
        self.probe_folder = resources.checkpoint(probe).parent if probe else None
        given = [guidance or (guidances or [DynamicNegativeGuidance()])[0], *(guidances or [])]
        folders = (self.calibration_checkpoint.parent, self.probe_folder)
        self.guidance, *others = (load_settings(method, *folders) for method in given)
        self.unguided, self.guidances = Unguided(), others or [self.guidance]

        # The classes
        judges = [judge for judge in (self.classifier, self.observer) if judge is not None]
        name_classes(self.model, [*negatives, *judges], checkpoint, bool(forbidden or class_labels))
        self.image_shape, self.class_names = self.model.decoded_shape, self.model.class_names
        seen = self.model.seen_classes
        self.forbidden = labels_of(forbidden, self.class_names, range(len(self.class_names)) if negatives else seen)
        self.class_labels = list(seen) if class_labels == "all" else labels_of(class_labels, self.class_names, seen)

        # Check that networks, classes and guidances fit together
        check_negatives(negatives, self.model, checkpoint, self.forbidden, [self.guidance, *self.guidances])
        for method in [self.guidance, *self.guidances]:
            noisy = self.noise_conditional_classifier is not None
            check_needs(method, bool(judges), noisy, self.probe is not None, bool(self.class_labels))
            method.start(torch.empty(1, *self.chain_shape), len(self.forbidden))  # raises for a wrong number of priors
        check_classes(self.forbidden, self.class_labels, [self.guidance, *self.guidances])
        check_null_class(self.model, checkpoint, self.class_labels, [self.guidance, *self.guidances])
        if self.class_labels and not self.model.null_class:
            raise SettingError(f"{checkpoint} is unconditional: it takes no class_labels")
        for judge in judges:
            sort_into(judge, self.class_names, self.image_shape)
        loaded = {
            f"classifier {self.judge_name or classifier}": self.classifier,
            f"observer {self.observer_name or observer}": self.observer,
            f"noise_conditional_classifier {noise_conditional_classifier}": self.noise_conditional_classifier,
            f"retrained_checkpoint {retrained_checkpoint}": self.retrained,
        }
        for name, other in loaded.items():
            if isinstance(other, TrainedModule):
                attributes = (
                    DIFFERENCES if other is self.noise_conditional_classifier else ("class_names", "image_shape")
                )
                reference = self if other in judges else self.model  # judges classify images, not latents
                check_same(name, other, checkpoint, reference, *attributes)
        if self.retrained and set(self.retrained.seen_classes) & set(self.forbidden):
            name = f"retrained_checkpoint {retrained_checkpoint}"
            raise SettingError(f"{name} was trained with a forbidden class: name another, or null")
        if self.probe:
            check_probe(f"probe {probe}", self.probe, checkpoint, self.model, self.forbidden, bool(self.class_labels))
            self.model.tap(self.probe.module)
        if compile:
            for network in (self.model, self.retrained, *negatives):
                if network is not None:
                    network.net.compile()
        self.draws = self.all_draws()

    @property
    def folder(self) -> Path:
        """See ``ImageSampler.folder``."""
        return self.path.parent

    @property
    def judge_folder(self) -> Path | None:
        """See ``ImageSampler.judge_folder``."""
        is_checkpoint = isinstance(self.classifier, ClassifierModule)
        return resources.checkpoint(str(self.classifier_name)).parent if is_checkpoint else None

    @property
    def judge(self) -> AnyClassifier | None:
        """See ``ImageSampler.judge``."""
        return self.classifier

    def networks(self) -> dict[str, torch.nn.Module | None]:
        """See ``ImageSampler.networks``."""
        names = ("classifier", "observer", "noise_conditional_classifier", "probe", "retrained")
        return {"checkpoint": self.model, "negative_checkpoints": self.negatives} | {n: getattr(self, n) for n in names}

    def predictor(self, guidance: Guidance, class_labels: Tensor | None = None) -> Predictor:
        """See ``ChainSampler.predictor``."""
        null = self.model.null_class
        predictor: Predictor = (
            NetworkPairPredictor(self.model, list(self.negatives), null or None, class_labels)
            if self.negatives
            else ClassConditionalPredictor(self.model, null, self.forbidden, class_labels)
        )
        needs = guidance.needs()
        if needs.classifier and self.noise_conditional_classifier:
            predictor = WithClassifier(predictor, self.noise_conditional_classifier.log_posterior, self.forbidden)
        if self.probe:
            known = [self.probe.class_names.index(self.class_names[label]) for label in self.forbidden]
            predictor = WithProbe(predictor, self.probe.log_posterior, self.probe.module, known)
        if needs.observer is not None:
            predictor = WithObserver(predictor, self._observe)
        return predictor

    def _observe(self, denoised: Tensor) -> Tensor:
        """The observer's probabilities of the forbidden classes, (B, K)."""
        observer = self.observer or self.classifier
        assert observer  # as the constructor checked
        return observer.probabilities(self.decode(denoised).clamp(-1, 1))[:, self.forbidden]

    def decode(self, x_0: Tensor) -> Tensor:
        """See ``ChainSampler.decode``."""
        return self.model.decode(x_0)

    def all_draws(self) -> list[Draw]:
        """The unguided images, those of each guidance, and those of the retrained model."""
        draws = super().all_draws()[:1]
        for guidance in self.guidances:
            if not isinstance(guidance, Unguided):
                needs = guidance.needs()
                noisy = self.noise_conditional_classifier_name if needs.classifier else ""
                observer = self.observer_name if needs.observer is not None else ""
                probe = self.probe_name if needs.probe else ""
                draws.append(Draw.of(guidance, checkpoint=noisy, observer=observer, probe=probe))
        if self.retrained:
            run = EvaluationRun.reference("Retrained", checkpoint=self.retrained_name)
            draws.append(Draw(run, Unguided(), retrained=True))
        return draws

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Samples]:
        """Images of a batch of seeds, which may be those of the retrained model."""
        if not self.draws[dataloader_idx].retrained or self.retrained is None:
            return super().test_step(batch, batch_idx, dataloader_idx)
        predictor = NetworkPairPredictor(self.retrained, [], self.retrained.null_class or None)
        return {"samples": self.draw(batch.tolist(), Unguided(), predictor=predictor)}
