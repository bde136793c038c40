"""The DNG sampling callback: watch, while a model trains, what guidance makes of it."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from dng_lightning.callbacks.validation_sampling import ValidationSampling
from dng_lightning.class_labels import labels_of
from dng_lightning.data.base import ImageDataModule
from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.evaluation import board, plots
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.metrics import forbidden_rate, kl_divergence
from dng_lightning.evaluation.quality import Moments, frechet_distance
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, Unguided
from dng_lightning.interfaces import Needs
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.modules.diffusion import DiffusionModule
from dng_lightning.posterior import Posterior
from dng_lightning.sampling import (
    ClassConditionalPredictor,
    ImageNoise,
    NetworkPairPredictor,
    Predictor,
    Sampler,
    Trajectories,
    sample,
)


class GuidedSampling(ValidationSampling):
    """Draws guided and unguided images at fixed seeds during validation, and logs them to TensorBoard.

    During validation the module holds the averaged weights if ``EMA`` is used, whatever the order of the callbacks.
    Each device draws its share. With a classifier the images of each class are counted, and their Fréchet distance to
    the validation images is taken in its features: to those that are not forbidden (``metrics/fd_*``) and to all of
    them (``metrics/fd_all_*``). Compare distances of equally many images only.

    Args:
        forbidden: the class or classes to avoid; None draws unguided images only (an unconditional model).
        guidance: the method; None for Dynamic Negative Guidance with its defaults.
        every_n_epochs: draw at the validations of each n-th epoch.
        images: how many, from seed 0 on.
        steps: sampling steps.
        classifier: checkpoint of a classifier that labels them; None for pictures only.
    """

    def __init__(
        self,
        forbidden: str | int | list[str | int] | None = "0",
        guidance: Guidance | None = None,
        every_n_epochs: int = 1,
        images: int = 64,
        steps: int = 50,
        classifier: str | None = None,
    ) -> None:
        if every_n_epochs < 1 or images < 1:
            raise SettingError("GuidedSampling needs every_n_epochs >= 1 and images >= 1")
        needs = guidance.needs() if guidance else Needs()
        for what, is_needed in {
            "noisy_classifier": needs.classifier,
            "class label": needs.class_labels,
            "observer": needs.observer is not None,
            "text": needs.attention,
        }.items():
            if is_needed:
                raise SettingError(f"GuidedSampling has no {what}: {type(guidance).__name__} is not for it")
        self.forbidden, self.every_n_epochs, self.images = forbidden, every_n_epochs, images
        self.guidance: Guidance = guidance or DynamicNegativeGuidance()
        self.sampler = Sampler(steps)
        self.classifier = ClassifierModule.load(classifier) if classifier else None
        self.features: ClassifierFeatures | None = None
        if self.classifier is not None and hasattr(self.classifier.net, "features"):
            self.features = ClassifierFeatures(self.classifier, str(classifier))
        self.real: dict[str, Moments] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the model can be guided as asked, before it trains, and look at the real images."""
        if not isinstance(pl_module, DiffusionModule):
            raise SettingError(f"GuidedSampling goes with a DiffusionModule; the model is {type(pl_module).__name__}")
        self.check(pl_module, pl_module)
        if self.classifier is not None:
            self.classifier.to(pl_module.device)
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        if isinstance(data, ImageDataModule) and self.images > 1:
            self.real = self._real(data)

    def check(self, module: DiffusionModule, data: DiffusionModule | ImageDataModule) -> None:
        """Settle the labels of the forbidden classes; ``data`` says what it is trained on.

        Raises:
            SettingError: a model of these classes cannot be guided as asked.
        """
        module.schedule.levels(self.sampler.steps)
        self.labels: list[int] = []
        if self.forbidden is not None:
            if not module.null_class:
                raise SettingError("GuidedSampling: the model is unconditional; set forbidden to null")
            self.labels = labels_of(self.forbidden, data.class_names, data.seen_classes)
            self.guidance.start(torch.empty(1, *data.image_shape), len(self.labels))  # refuses what does not fit
        if self.classifier is not None and tuple(self.classifier.class_names) != tuple(data.class_names):
            raise SettingError(
                "GuidedSampling: the classifier knows other classes than the data: name another, or null"
            )

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log."""
        assert isinstance(pl_module, DiffusionModule)
        drawn = {"unguided": self._draw(trainer, pl_module, Unguided())}
        if self.labels:
            drawn["guided"] = self._draw(trainer, pl_module, self.guidance)
        for name, images in drawn.items():
            for metric, value in self._measure(images).items():
                pl_module.log(f"metrics/{metric}_{name}", value, batch_size=self.images)  # the same on every device
        if (writer := board.board_of(trainer)) is None:
            return
        step = trainer.global_step
        for name, images in drawn.items():
            grid = plots.framed_grid(to_uint8(images.images).cpu(), images.are(self.labels))
            writer.add_image(f"samples/{name}", grid, step)
        if self.classifier is not None:
            counts = {name: self._counts(images) for name, images in drawn.items()}
            board.classes(writer, counts, pl_module.class_names, self.labels, step)
        if "guided" in drawn:
            seen, forbidden = drawn["guided"], drawn["guided"].are(self.labels)
            board.trajectories(writer, "guidance", seen.times, seen.posterior, seen.scale, forbidden, step)
        writer.flush()

    def charts(self) -> board.Layout:
        """The charts of what is logged here, for ``SummaryWriter.add_custom_scalars``."""
        names = ["guided", "unguided"] if self.labels else ["unguided"]

        def both(metric: str) -> board.Chart:
            return board.lines(*(f"metrics/{metric}_{name}" for name in names))

        charts: board.Layout = {}
        if self.classifier is not None:
            balance = {f"Share of each class, {name}": board.lines(f"classes/{name}/*") for name in names}
            if self.labels:
                balance[f"Share that is forbidden, N = {self.images}"] = both("forbidden_rate")
            charts["Class balance"] = balance | {"KL from the even classes": both("kl")}
        if self.labels:
            charts["Guidance"] = {"Scale over all steps, mean and its 95 % interval": board.band("guidance/scale")}
            if isinstance(getattr(self.guidance, "posterior", None), Posterior):
                title = "Posterior at the end, mean and its 95 % interval"
                charts["Guidance"][title] = board.band("guidance/posterior")
        titles = {"fd": "Fréchet distance to the retained classes", "fd_all": "Fréchet distance to all real images"}
        if self.real:
            charts["Quality"] = {f"{titles[metric]}, N = {self.images}": both(metric) for metric in self.real}
        return charts

    def _measure(self, drawn: "Drawn") -> dict[str, float]:
        """Metrics of drawn images."""
        metrics = {}
        if drawn.labels is not None:
            counts = self._counts(drawn)
            metrics["kl"] = kl_divergence(counts, self.labels)
            if self.labels:
                metrics["forbidden_rate"] = forbidden_rate(counts, self.labels)[0]
        if self.features is not None and self.real:
            moments = Moments()
            moments.update(self.features(to_uint8(drawn.images)))
            for metric, real in self.real.items():
                metrics[metric] = frechet_distance(real.mean, real.covariance, moments.mean, moments.covariance)
        return metrics

    def _real(self, data: ImageDataModule) -> dict[str, Moments]:
        """What the images' features are compared with: for each distance the moments of validation images."""
        if self.features is None:
            return {}
        part, real = data.part("val"), {"fd": Moments(), "fd_all": Moments()}
        for places in torch.split(torch.arange(len(part)), 500):
            pixels, labels = part.images[places], part.labels[places]
            features = self.features(pixels).cpu()
            real["fd"].update(features[~torch.isin(labels, torch.tensor(self.labels))])
            real["fd_all"].update(features)
        if not self.labels:
            del real["fd_all"]  # the same
        return {metric: moments for metric, moments in real.items() if moments.n > 1}

    def _counts(self, drawn: "Drawn") -> list[int]:
        """How many of the images each class has."""
        assert self.classifier is not None
        assert drawn.labels is not None
        return torch.bincount(drawn.labels, minlength=len(self.classifier.class_names)).tolist()

    def _draw(self, trainer: Trainer, module: DiffusionModule, guidance: Guidance) -> "Drawn":
        """The images of all seeds, on every device."""
        ranks = trainer.world_size
        share = -(-self.images // ranks)  # every device draws equally many, so that they can be gathered
        noise = ImageNoise([trainer.global_rank + ranks * i for i in range(share)], module.image_shape, module.device)
        if self.labels:
            predictor: Predictor = ClassConditionalPredictor(module, module.null_class, self.labels)
        else:
            predictor = NetworkPairPredictor(module, [], module.null_class or None)
        seen = Trajectories()
        with trainer.precision_plugin.forward_context():
            images = sample(predictor, guidance, module.schedule, noise, self.sampler, [seen])

        def gather(mine: Tensor) -> Tensor:
            all_of_them = torch.as_tensor(module.all_gather(mine)).reshape(ranks, share, *mine.shape[1:])
            return all_of_them.transpose(0, 1).flatten(0, 1)[: self.images]

        images = gather(images)
        labels = self.classifier.classify(to_float(to_uint8(images)))[0] if self.classifier else None
        posterior = None if seen.posterior is None else gather(seen.posterior.sum(2))
        times = [module.schedule.fraction(level) for level in seen.levels]
        return Drawn(images, labels, times, gather(seen.scale), posterior)


@dataclass(frozen=True)
class Drawn:
    """Images of all seeds: x_0 (N, C, H, W); their labels (N,); t / T (S,), scale and posterior (N, S) on the way."""

    images: Tensor
    labels: Tensor | None
    times: list[float]
    scale: Tensor
    posterior: Tensor | None

    def are(self, classes: Collection[int]) -> list[bool]:
        """Which images are of these classes."""
        labels = [None] * len(self.images) if self.labels is None else self.labels.tolist()
        return [label in classes for label in labels]
