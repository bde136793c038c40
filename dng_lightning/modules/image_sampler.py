"""Base class of the sampling modules: one image a seed."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule
from torch import Tensor, nn

from dng_lightning.evaluation.features import Judge, fingerprint
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.evaluation.runs import EvaluationRun, Samples
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.references import References
from dng_lightning.guidance.serialization import (
    display_name,
    map_settings,
    non_default_settings,
    scale_of,
    settings_json,
)
from dng_lightning.sampling import ImageNoise, Predictor, Recorder, Sampler, Trajectories, sample
from dng_lightning.schedule import NoiseSchedule


@dataclass(frozen=True)
class Draw:
    """One way in which ``dng test`` draws its seeds.

    Attributes:
        run: what the evaluation calls it.
        guidance: how the images are guided.
        retrained: draw from the model that was trained without the forbidden classes.
    """

    run: EvaluationRun
    guidance: Guidance
    retrained: bool = False

    @classmethod
    def of(cls, guidance: Guidance, **networks: str | None) -> "Draw":
        """A method, and the networks that it needs besides those of all methods."""
        own = json.loads(non_default_settings(settings_json(guidance)))
        settings = json.dumps(own | {name: value for name, value in networks.items() if value}, sort_keys=True)
        return cls(EvaluationRun(display_name(guidance), settings, scale_of(guidance)), guidance)


class ImageSampler(LightningModule, ABC):
    """What ``dng predict`` and ``dng test`` draw images with, one a seed.

    Args:
        sampler: how the reverse chain is sampled.

    Attributes:
        guidance: the method of ``dng predict``.
        guidances: the methods that ``dng test`` compares on the same seeds.
        unguided: the method that their images are compared with, which knows of nothing forbidden.
        baselines: further methods that they are compared with.
        schedule: the noise levels of the chain.
        chain_shape: (C, H, W) of the states along it.
        image_shape: (C, H, W) of the images.
        class_names: of the conditions that there are.
        forbidden: the labels of those to avoid.
        class_labels: labels to condition on, one an image in turn; empty for none.
        checkpoint: name of the model.
        judge_name: what the features of ``judge`` are called.
        draws: those that ``dng test`` makes, one a data loader.
        draws_owner: the callback that decides them.
        recorders: called at each sampling step, such as a progress bar.
    """

    guidance: Guidance
    guidances: list[Guidance]
    unguided: Guidance
    schedule: NoiseSchedule
    chain_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    forbidden: list[int]
    class_labels: list[int]
    checkpoint: str
    judge_name: str

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler
        self.baselines: list[Guidance] = []
        self.draws: list[Draw] = []
        self.draws_owner: Callback | None = None
        self.recorders: list[Recorder] = []

    def keep_apart(self, **networks: object) -> None:
        """Set attributes out of the module tree: the trainer's precision is not for what judges images."""
        for name, network in networks.items():
            object.__setattr__(self, name, network)

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the model lies, and what belongs to it."""

    @property
    def label_space(self) -> LabelSpace:
        """What images are sorted into: by default the conditions themselves."""
        return LabelSpace.of_classes(self.class_names, self.forbidden)

    @property
    def judge(self) -> Judge | None:
        """The classifier that labels the images; None for no labels."""
        return None

    @property
    def judge_folder(self) -> Path | None:
        """Where the judge lies, and what belongs to it; None for nowhere."""
        return None

    def read(self, images: Tensor) -> Tensor | None:
        """All that is read in ``images`` (B, C, H, W) in [-1, 1] without a judge, (B, ...); None for nothing."""
        return None

    @abstractmethod
    def predictor(self, guidance: Guidance, class_labels: Tensor | None = None) -> Predictor:
        """The predictor over the loaded networks.

        Args:
            guidance: what it serves.
            class_labels: the class that each image shall show, (B,); None for any.
        """

    @abstractmethod
    def networks(self) -> dict[str, nn.Module | None]:
        """The networks by the settings that name them; None where none is named."""

    def inputs(self, calibration: bool) -> dict[str, str]:
        """Hashes of the files that the settings name: images drawn with others are others.

        Args:
            calibration: that of ``guidance`` too. The rows of ``dng test`` tell theirs apart themselves.
        """
        found = {name: fingerprint(network) for name, network in self.networks().items() if network is not None}
        for guidance in (self.guidance, *self.guidances, *self.baselines):
            map_settings(guidance, partial(_note_references, found))
        if calibration:
            found["calibration"] = hashlib.sha256(settings_json(self.guidance).encode()).hexdigest()[:12]
        return found

    def decode(self, x_0: Tensor) -> Tensor:
        """The images, (B, C, H, W) in about [-1, 1], that the chain's end stands for: itself, if it is of pixels."""
        return x_0

    def class_label(self, seed: int) -> int | None:
        """The class that the image of ``seed`` shall show, None for any."""
        return self.class_labels[seed % len(self.class_labels)] if self.class_labels else None

    def draw(
        self,
        seeds: Sequence[int],
        guidance: Guidance | None = None,
        recorders: Sequence[Recorder] = (),
        predictor: Predictor | None = None,
    ) -> Samples:
        """Draw one image a seed.

        Args:
            seeds: >= 0.
            guidance: another method than the module's own.
            recorders: note each step of these images alone.
            predictor: a fresh one of other networks than the module's own.
        """
        guidance = guidance or self.guidance
        labels = torch.tensor([self.class_label(s) for s in seeds], device=self.device) if self.class_labels else None
        predictor = predictor or self.predictor(guidance, labels)
        every = [*self.recorders, *recorders]
        return draw_samples(self, predictor, seeds, guidance, self.sampler, self.chain_shape, every, self.decode)

    def all_draws(self) -> list[Draw]:
        """What ``dng test`` draws: unguided images, and those of each guidance."""
        others = [Draw.of(guidance) for guidance in self.guidances if guidance != self.unguided]
        return [Draw(EvaluationRun.reference("Unguided"), self.unguided), *others]

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Samples]:
        """The images of a batch of seeds."""
        return {"samples": self.draw(batch.tolist(), self.draws[dataloader_idx].guidance)}

    def predict_step(self, batch: Tensor, batch_idx: int) -> Samples:
        """The images of a batch of seeds."""
        return self.draw(batch.tolist())


def _note_references(found: dict[str, str], part: Any) -> Any:
    if isinstance(references := getattr(part, "references", None), References):
        found[f"references {references.source}"] = hashlib.sha256(references.images.numpy().tobytes()).hexdigest()[:12]
    return part


def draw_samples(
    module: Any,
    predictor: Predictor,
    seeds: Sequence[int],
    guidance: Guidance,
    sampler: Sampler,
    shape: Sequence[int],
    recorders: Sequence[Recorder] = (),
    decode: Callable[[Tensor], Tensor] = lambda x_0: x_0,
) -> Samples:
    """Draw one image a seed, in the trainer's precision wherever it is called from.

    Args:
        module: the LightningModule that draws; its ``schedule`` gives the noise levels.
        predictor: a fresh one.
        seeds: >= 0.
        guidance: the method.
        sampler: how the reverse chain is sampled.
        shape: (C, H, W) of the states along it.
        recorders: note each step.
        decode: gives the images that the chain's end stands for.
    """
    noise, seen = ImageNoise(seeds, shape, module.device), Trajectories()
    precision = nullcontext() if module._trainer is None else module.trainer.precision_plugin.forward_context()
    with precision:
        images = decode(sample(predictor, guidance, module.schedule, noise, sampler, [seen, *recorders]))
    times = [module.schedule.fraction(level) for level in seen.levels]
    return Samples(list(seeds), images, times, seen.scale, seen.posterior, predictor.nfe / len(seeds))
