"""Sampling from a trained model without the forbidden classes."""

from typing import Literal

import torch
from torch import Tensor

from dng_lightning.class_labels import labels_of
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.runs import EvaluationRun, Samples
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, Unguided
from dng_lightning.guidance.serialization import display_name
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.kernel import Variance
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.modules.checkpoint_settings import chosen, load_settings
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.modules.compatibility import (
    DIFFERENCES,
    check_classes,
    check_negatives,
    check_null_class,
    check_probe,
    check_same,
    name_classes,
    own_classifier,
)
from dng_lightning.modules.image_sampler import ChainSampler, Draw
from dng_lightning.modules.judges import AnyClassifier, load_classifier, sort_into
from dng_lightning.modules.models import load_model
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
        tracked: models whose predictions a posterior tracks; the folder of the first has its calibration.
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
        model = load_model(checkpoint)
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
        self.keep_apart(judge=self.classifier)

        # The guidances, with the calibration in the checkpoint's folder and their reference images
        self.folder, self.tracked = model.folder, negatives or [model]
        given = chosen(DynamicNegativeGuidance(), guidance, guidances)
        folders = self.tracked[0].folder, self.probe.folder if self.probe else None
        self.guidance, *self.guidances = (load_settings(method, *folders) for method in given)
        self.unguided = Unguided()

        # The classes
        judges = [judge for judge in (self.classifier, self.observer) if judge is not None]
        name_classes(self.model, [*negatives, *judges], checkpoint, bool(forbidden or class_labels))
        self.image_shape, self.class_names = self.model.decoded_shape, self.model.class_names
        seen = self.model.seen_classes
        self.forbidden = labels_of(forbidden, self.class_names, range(len(self.class_names)) if negatives else seen)
        self.class_labels = list(seen) if class_labels == "all" else labels_of(class_labels, self.class_names, seen)

        # Check that networks, classes and guidances fit together
        methods = [self.guidance, *self.guidances]
        check_negatives(negatives, self.model, checkpoint, self.forbidden, methods)
        if self.probe:
            check_probe(f"probe {probe}", self.probe, checkpoint, self.model, self.forbidden)
            self.model.tap(self.probe.module)
        for method in methods:
            labels = torch.tensor(self.class_labels) if self.class_labels else None
            self.predictor(method, labels).check(method.needs(), display_name(method))
            method.start(torch.empty(1, *self.chain_shape), len(self.forbidden))  # raises for a wrong number of priors
        check_classes(self.forbidden, self.class_labels, methods)
        check_null_class(self.model, checkpoint, self.class_labels, methods)
        if self.class_labels and not self.model.null_class:
            raise SettingError(f"{checkpoint} is unconditional: it takes no class_labels")
        for judge in judges:
            sort_into(judge, self.class_names, self.image_shape)
        for name in ("classifier", "observer", "noise_conditional_classifier", "retrained"):
            if isinstance(other := getattr(self, name), TrainedModule):
                noisy = name == "noise_conditional_classifier"
                attributes = DIFFERENCES if noisy else ("class_names", "image_shape")
                reference = self if other in judges else self.model  # judges classify images, not latents
                check_same(f"{name} {other.name}", other, checkpoint, reference, *attributes)
        if self.retrained and set(self.retrained.seen_classes) & set(self.forbidden):
            name = f"retrained_checkpoint {retrained_checkpoint}"
            raise SettingError(f"{name} was trained with a forbidden class: name another, or null")
        if compile:
            for network in (self.model, self.retrained, *negatives):
                if network is not None:
                    network.net.compile()
        self.draws = self.all_draws()

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
        if needs.observer is not None and (observer := self.observer or self.classifier):

            def observe(denoised: Tensor) -> Tensor:
                return observer.probabilities(self.decode(denoised).clamp(-1, 1))[:, self.forbidden]

            predictor = WithObserver(predictor, observe)
        return predictor

    def decode(self, x_0: Tensor) -> Tensor:
        """See ``ChainSampler.decode``."""
        return self.model.decode(x_0)

    def all_draws(self) -> list[Draw]:
        """The unguided images, those of each guidance, and those of the retrained model."""
        draws = super().all_draws()[:1]
        for guidance in self.guidances:
            if not isinstance(guidance, Unguided):
                needs = guidance.needs()
                noisy = self.noise_conditional_classifier if needs.classifier else None
                observer = self.observer if needs.observer is not None else None
                probe = self.probe if needs.probe else None
                own = {"checkpoint": noisy, "observer": observer, "probe": probe}
                draws.append(Draw.of(guidance, **{key: network.name for key, network in own.items() if network}))
        if self.retrained:
            run = EvaluationRun.reference("Retrained", checkpoint=self.retrained.name)
            draws.append(Draw(run, Unguided(), retrained=True))
        return draws

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Samples]:
        """Images of a batch of seeds, which may be those of the retrained model."""
        if not self.draws[dataloader_idx].retrained or self.retrained is None:
            return super().test_step(batch, batch_idx, dataloader_idx)
        predictor = NetworkPairPredictor(self.retrained, [], self.retrained.null_class or None)
        return {"samples": self.draw(batch.tolist(), Unguided(), predictor=predictor)}
