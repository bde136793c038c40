"""Drawing one image a seed, whatever the network and the guidance."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from lightning import LightningModule
from torch import Tensor
from tqdm import tqdm

from dng_lightning.evaluation.features import Judge
from dng_lightning.evaluation.kinds import Kinds
from dng_lightning.guidance import Guidance, Guided, Step
from dng_lightning.guidance.naming import named
from dng_lightning.modules.passes import Pass
from dng_lightning.predictors import Predictor
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.schedule import NoiseSchedule


@dataclass(frozen=True)
class Samples:
    """Images and what is known of them.

    Attributes:
        seeds: one an image.
        images: x_0, (B, C, H, W), about [-1, 1], not clamped.
        levels: the level t that each step starts from, (S,).
        scale: guidance scale at each step, (B, S).
        posterior: of each forbidden class before each step, (B, S, K); None if not tracked.
        labels: what the classifier sees, (B,); None without one.
        confidence: its probability of that label, (B,); None without a classifier.
        read: all that it reads in the images, (B, ...); None where the label is all.
        evaluations: network evaluations spent on an image.
    """

    seeds: list[int]
    images: Tensor
    levels: list[int]
    scale: Tensor
    posterior: Tensor | None
    labels: Tensor | None
    confidence: Tensor | None
    evaluations: float
    read: Tensor | None = None


class ImageSampler(LightningModule, ABC):
    """What ``dng predict`` and ``dng test`` draw images with, one a seed.

    Args:
        sampler: how the reverse chain is walked.

    Attributes:
        guidance: the method of ``dng predict``.
        guidances: the methods that ``dng test`` compares on the same seeds.
        todo: the passes that ``dng test`` makes; a callback may leave out or change some.
        unguided: the method that its images are compared with, which knows of nothing forbidden.
        compared: further methods that they are compared with.
        schedule: the noise levels of the chain.
        chain_shape: (C, H, W) of what is drawn along it.
        image_shape: (C, H, W) of the images.
        class_names: of the conditions that there are.
        forbidden: the labels of those to avoid.
        wanted: those that the images shall show in turn; empty for any.
        classifier: labels the images by their ``kinds``; None for no labels.
        classifier_name: what its features are called.
        checkpoint: the model that the images are drawn from, as it was named.
        extra_images: images that a callback is going to draw besides those of the data; for the progress bar.
    """

    guidance: Guidance
    guidances: list[Guidance]
    todo: list[Pass]
    unguided: Guidance
    schedule: NoiseSchedule
    chain_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    forbidden: list[int]
    wanted: list[int]
    classifier: Judge | None
    classifier_name: str
    checkpoint: str

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler
        self.compared: list[Guidance] = []
        self.bar: tqdm[NoReturn] | None = None
        self.extra_images = 0

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the model lies, and what belongs to it."""

    @property
    def kinds(self) -> Kinds:
        """What images are sorted into, by their labels: the conditions themselves, if nothing else is said."""
        return Kinds.of_classes(self.class_names, self.forbidden)

    @abstractmethod
    def predictor(self, guidance: Guidance | None = None) -> Predictor:
        """The predictor over the loaded networks.

        Args:
            guidance: what it shall serve; None for the module's own.
        """

    def decoded(self, x_0: Tensor) -> Tensor:
        """The images, (B, C, H, W) in about [-1, 1], that the chain's end stands for: itself, if it is of pixels."""
        return x_0

    def judged(self, images: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Labels, confidence, and all that is read in ``images`` (B, C, H, W) in [-1, 1], as ``Samples`` has them."""
        return (*self.classifier.classify(images), None) if self.classifier else (None, None, None)

    def wanted_label(self, seed: int) -> int | None:
        """The class that the image of ``seed`` shall show, None for any."""
        return self.wanted[seed % len(self.wanted)] if self.wanted else None

    def draw(self, seeds: Sequence[int], guidance: Guidance | None = None) -> Samples:
        """Draw one image a seed.

        Args:
            seeds: >= 0.
            guidance: another method than the module's own.
        """
        return self.draw_from(self.predictor(guidance), seeds, guidance)

    def draw_from(self, predictor: Predictor, seeds: Sequence[int], guidance: Guidance | None = None) -> Samples:
        """Draw one image a seed from the networks of a fresh ``predictor``; the rest as for ``draw``."""
        noise = ImageNoise(seeds, self.chain_shape, self.device)
        wanted = torch.tensor([self.wanted_label(s) for s in seeds], device=self.device) if self.wanted else None
        levels: list[int] = []
        scales: list[Tensor] = []
        posteriors: list[Tensor] = []

        def on_step(step: Step, guided: Guided, x_s: Tensor) -> None:
            levels.append(step.t)
            scales.append(guided.scale)
            if guided.posterior is not None:
                posteriors.append(guided.posterior.float())
            if self.bar is not None:
                self.bar.update(len(seeds))

        guidance = guidance or self.guidance
        images = self.decoded(sample(predictor, guidance, self.schedule, noise, self.sampler, wanted, on_step))
        labels, confidence, read = self.judged(images.clamp(-1, 1))
        posterior = torch.stack(posteriors, 1) if posteriors else None
        scale, evaluations = torch.stack(scales, 1), predictor.evaluations / len(seeds)
        return Samples(list(seeds), images, levels, scale, posterior, labels, confidence, evaluations, read)

    def passes(self) -> list[Pass]:
        """What ``dng test`` draws: unguided images, and those of each guidance."""
        others = [guidance for guidance in self.guidances if guidance != self.unguided]
        return [Pass("Unguided", self.unguided), *(Pass(named(guidance), guidance) for guidance in others)]

    def on_test_start(self) -> None:
        """Show the progress, all guidances together."""
        self.start_bar()

    def on_test_end(self) -> None:
        """Stop showing it."""
        self.close_bar()

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Samples]:
        """The images of a batch of seeds, drawn as the pass says."""
        return {"samples": self.draw(batch.tolist(), self.todo[dataloader_idx].guidance)}

    def on_predict_start(self) -> None:
        """Show the progress, all batches together."""
        self.start_bar()

    def on_predict_end(self) -> None:
        """Stop showing it."""
        self.close_bar()

    def start_bar(self) -> None:
        """Show how many steps of how many images are done."""
        loaders = self.trainer.predict_dataloaders or self.trainer.test_dataloaders or []
        loaders = loaders if isinstance(loaders, list) else [loaders]
        images = sum(len(loader.sampler) for loader in loaders) + self.extra_images
        hidden = None if self.global_rank == 0 else True  # None: where there is no terminal
        unit = " steps of an image"
        self.bar = tqdm(total=images * self.sampler.steps, unit=unit, unit_scale=True, leave=False, disable=hidden)

    def close_bar(self) -> None:
        """Take the progress off the screen."""
        if self.bar is not None:
            self.bar.close()

    def predict_step(self, batch: Tensor, batch_idx: int) -> Samples:
        """The images of a batch of seeds."""
        return self.draw(batch.tolist())
