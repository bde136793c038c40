"""Sampling callback: guided and unguided images during training."""

from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from dng_lightning.callbacks.requirements import expect
from dng_lightning.callbacks.validation_sampling import ValidationSampling
from dng_lightning.class_labels import labels_of
from dng_lightning.data.base import ImageDataModule
from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.errors import SettingError, check_at_least
from dng_lightning.evaluation import boards, figures
from dng_lightning.evaluation.class_balance import forbidden_rate, kl_divergence
from dng_lightning.evaluation.distribution_metrics import Moments, frechet_distance
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.runs import Samples
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, Unguided
from dng_lightning.guidance.serialization import display_name, scale_of
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.modules.diffusion import DiffusionModule
from dng_lightning.modules.image_sampler import draw_samples
from dng_lightning.modules.judges import load_classifier, sort_into
from dng_lightning.sampling import ClassConditionalPredictor, Sampler


class GuidedSampling(ValidationSampling):
    """Draws guided and unguided images at fixed seeds during validation, and logs them to the trainer's loggers.

    During validation the module holds the averaged weights if ``EMA`` is used, whatever the order of the callbacks.
    Each device draws its share. With a classifier the images of each class are counted, and their Fréchet distance to
    the validation images is computed in its features: to the images that are not forbidden (``metrics/fd_*``) and to
    all images (``metrics/fd_all_*``). Only distances for the same number of images are comparable.

    Args:
        forbidden: the class or classes to avoid; None draws unguided images only (an unconditional model).
        guidance: guidance method; None for Dynamic Negative Guidance with its defaults.
        every_n_epochs: draw at the validations of every n-th epoch.
        num_samples: number of images, from seed 0 on.
        steps: number of sampling steps.
        classifier: classifier that labels the images, see ``GuidedSampler``; None for images without metrics.
    """

    def __init__(
        self,
        forbidden: str | int | list[str | int] | None = "0",
        guidance: Guidance | None = None,
        every_n_epochs: int = 1,
        num_samples: int = 64,
        steps: int = 50,
        classifier: PretrainedClassifier | str | None = None,
    ) -> None:
        check_at_least(
            1, **{"GuidedSampling's every_n_epochs": every_n_epochs, "GuidedSampling's num_samples": num_samples}
        )
        self.guidance: Guidance = guidance or DynamicNegativeGuidance()
        needs = self.guidance.needs()
        if needs.classifier or needs.class_labels or needs.observer is not None or needs.attention:
            other = f"{type(self.guidance).__name__} is not for it"
            raise SettingError(f"GuidedSampling has no class label, text, classifier or observer: {other}")
        self.forbidden, self.every_n_epochs, self.num_samples = forbidden, every_n_epochs, num_samples
        self.sampler = Sampler(steps)
        self.classifier = load_classifier(classifier) if classifier else None
        self.labels: list[int] = []
        self.features: ClassifierFeatures | None = None
        if self.classifier is not None and hasattr(self.classifier.net, "num_features"):
            self.features = ClassifierFeatures(self.classifier)
        self.real: dict[str, Moments] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the settings against the model before training, and compute the moments of the validation images."""
        module = expect(DiffusionModule, pl_module, self)
        self.check(module, module)
        if self.classifier is not None:
            self.classifier.to(module.device)
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        if isinstance(data, ImageDataModule) and self.features is not None and self.num_samples > 1:
            self.real = self._real(data, self.features)

    def check(self, module: LightningModule, data: DiffusionModule | ImageDataModule) -> None:
        """Determine the labels of the forbidden classes; ``data`` has the classes and the shape of the training images.

        Raises:
            SettingError: the module is not a diffusion model, or a forbidden class is unknown or not trained on.
        """
        module = expect(DiffusionModule, module, self)
        module.schedule.levels(self.sampler.steps)
        self.labels = []
        if self.forbidden is not None and not module.null_class:
            raise SettingError("GuidedSampling: the model is unconditional; set forbidden to null")
        if self.forbidden is not None:
            self.labels = labels_of(self.forbidden, data.class_names, data.seen_classes)
            self.guidance.start(torch.empty(1, *data.image_shape), len(self.labels))  # refuses an incompatible guidance
        if self.classifier is not None:
            sort_into(self.classifier, data.class_names, data.image_shape)
        if self.classifier is not None and tuple(self.classifier.class_names) != tuple(data.class_names):
            raise SettingError("GuidedSampling: the classifier has other classes than the data: name another, or null")

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the images and log them."""
        module, step = expect(DiffusionModule, pl_module, self), trainer.global_step
        board, counts = boards.board_of(trainer), {}
        for name, guidance in self._methods().items():
            samples = self._draw(trainer, module, guidance)
            pixels, forbidden, measures = to_uint8(samples.images), [False] * self.num_samples, {}
            posterior = None if samples.posterior is None else samples.posterior.sum(2)

            # Metrics: the same on every device
            if self.classifier is not None:
                labels = self.classifier.label(to_float(pixels)).labels
                forbidden = [label in self.labels for label in labels.tolist()]
                counts[name] = torch.bincount(labels, minlength=len(module.class_names)).tolist()
                measures = self._measure(pixels, counts[name])
            if guidance is self.guidance:
                measures["scale"] = float(samples.scale.mean())
                if posterior is not None:
                    measures["posterior"] = float(posterior[:, -1].mean())
            for metric, value in measures.items():
                module.log(f"metrics/{metric}_{name}", value, batch_size=self.num_samples)

            # Images: on the first device
            if not board.loggers:
                continue
            board.add_image(f"samples/{name}", figures.framed_grid(pixels.cpu(), forbidden), step)
            if name in counts:
                board.add_counts(f"samples/class_counts_{name}", counts[name], step)
            if guidance is self.guidance:
                shown = figures.TrajectorySet(samples.times, samples.scale, posterior, forbidden)
                board.add_figure("trajectories/scale_and_posterior", figures.trajectory_bands(shown), step)
        if counts and board.loggers:
            board.add_figure("samples/class_shares", figures.class_bars(counts, module.class_names, self.labels), step)
        board.flush()

    def settings(self, module: LightningModule) -> dict[str, Any]:
        """Settings of the guidance for the HPARAMS tab; empty without a forbidden class."""
        if not self.labels:
            return {}
        names = expect(DiffusionModule, module, self).class_names
        return {
            "forbidden": ", ".join(names[label] for label in self.labels),
            "guidance": display_name(self.guidance),
            "scale": scale_of(self.guidance),
        }

    def _methods(self) -> dict[str, Guidance]:
        return {"unguided": Unguided(), "guided": self.guidance} if self.labels else {"unguided": Unguided()}

    def _measure(self, pixels: Tensor, counts: list[int]) -> dict[str, float]:
        """Metrics of uint8 images; ``counts`` are the images of each class."""
        metrics = {"kl": kl_divergence(counts, self.labels)}
        if self.labels:
            metrics["forbidden_rate"] = forbidden_rate(counts, self.labels)[0]
        if self.features is not None and self.real:
            moments = Moments()
            moments.update(self.features(pixels))
            for metric, real in self.real.items():
                metrics[metric] = frechet_distance(real.mean, real.covariance, moments.mean, moments.covariance)
        return metrics

    def _real(self, data: ImageDataModule, features: ClassifierFeatures) -> dict[str, Moments]:
        """Moments of the validation images' features, for each Fréchet distance."""
        real = {"fd": Moments(), "fd_all": Moments()}
        for pixels, labels in data.val_dataloader():
            found = features(pixels).cpu()
            real["fd"].update(found[~torch.isin(labels, torch.tensor(self.labels))])
            real["fd_all"].update(found)
        if not self.labels:
            del real["fd_all"]  # the same as fd
        return {metric: moments for metric, moments in real.items() if moments.n > 1}

    def _draw(self, trainer: Trainer, module: DiffusionModule, guidance: Guidance) -> Samples:
        """The images of all seeds, on every device."""
        ranks = trainer.world_size
        share = -(-self.num_samples // ranks)  # the same number on every device, so that they can be gathered
        predictor = ClassConditionalPredictor(module, module.null_class, self.labels)
        seeds = [trainer.global_rank + ranks * i for i in range(share)]
        mine = draw_samples(module, predictor, seeds, guidance, self.sampler, module.image_shape)

        def gather(mine: Tensor) -> Tensor:
            all_of_them = torch.as_tensor(module.all_gather(mine)).reshape(ranks, share, *mine.shape[1:])
            return all_of_them.transpose(0, 1).flatten(0, 1)[: self.num_samples]

        posterior = None if mine.posterior is None else gather(mine.posterior)
        return replace(mine, images=gather(mine.images), scale=gather(mine.scale), posterior=posterior)
