"""Base class of the modules that sample one image for each seed."""

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
from lightning import LightningModule
from torch import Tensor, nn

from dng_lightning.errors import SettingError
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
from dng_lightning.networks.precision import set_memory_format
from dng_lightning.sampling import ImageNoise, Predictor, Recorder, Sampler, Trajectories, sample
from dng_lightning.schedule import NoiseSchedule


@dataclass(frozen=True)
class Draw:
    """A pass of ``dng test`` over its seeds.

    Attributes:
        run: the run in the evaluation.
        guidance: guidance method.
        retrained: sample from the model that was trained without the forbidden classes.
    """

    run: EvaluationRun
    guidance: Guidance
    retrained: bool = False

    @classmethod
    def of(cls, guidance: Guidance, **networks: str) -> "Draw":
        """The pass of a guidance; ``networks`` are the names of the networks that only it needs."""
        own = json.loads(non_default_settings(settings_json(guidance)))
        settings = json.dumps(own | networks, sort_keys=True)
        return cls(EvaluationRun(display_name(guidance), settings, scale_of(guidance)), guidance)


class ImageSampler(LightningModule, ABC):
    """Samples the images of ``dng predict`` and ``dng test``.

    Args:
        sampler: sampler of the reverse chain.

    Attributes:
        tracks_passively: whether posteriors can be tracked on the images of another guidance.
        guidance: guidance method of ``dng predict``.
        guidances: guidance methods that ``dng test`` compares on the same seeds.
        unguided: method without negative guidance, for comparison.
        baselines: other methods, for comparison.
        schedule: noise schedule of the chain.
        chain_shape: (C, H, W) of the states of the chain.
        image_shape: (C, H, W) of the images.
        class_names: names of the classes or prompts.
        forbidden: forbidden labels.
        class_labels: labels to condition on, which the images take in turn; empty for none.
        checkpoint: name of the model.
        folder: folder of the model, with its calibration and statistics.
        judge: the classifier that labels the images; None for no labels.
        draws: passes of ``dng test``, one for each data loader.
        recorders: called at each sampling step, such as a progress bar.
    """

    tracks_passively = False
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
    folder: Path
    judge: Judge | None = None

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler
        self.baselines: list[Guidance] = []
        self.draws: list[Draw] = []
        self.recorders: list[Recorder] = []

    def keep_apart(self, **networks: object) -> None:
        """Set attributes outside the module tree, so that classifiers are exempt from the trainer's precision."""
        for name, network in networks.items():
            object.__setattr__(self, name, network)

    @property
    def label_space(self) -> LabelSpace:
        """Labels of the images; by default the classes of the model."""
        return LabelSpace.of_classes(self.class_names, self.forbidden)

    def read(self, images: Tensor) -> Tensor | None:
        """Attributes read from ``images`` (B, C, H, W) in [-1, 1] without a judge, (B, ...); None for none."""
        return None

    @abstractmethod
    def networks(self) -> dict[str, nn.Module | None]:
        """The networks by the names of their settings; None for a setting without a network."""

    def setup(self, stage: str) -> None:
        """Set the networks' memory format for the device and the trainer's precision."""
        set_memory_format(self, self.trainer.strategy.root_device, str(self.trainer.precision))

    def inputs(self, calibration: bool) -> dict[str, str]:
        """Hashes of the files named by the settings, to detect images that were sampled with other files.

        Args:
            calibration: include the calibration of ``guidance``; the rows of ``dng test`` contain their own.
        """
        found = {name: fingerprint(network) for name, network in self.networks().items() if network is not None}
        for guidance in (self.guidance, *self.guidances, *self.baselines):
            map_settings(guidance, partial(_note_references, found))
        if calibration:
            found["calibration"] = hashlib.sha256(settings_json(self.guidance).encode()).hexdigest()[:12]
        return found

    def class_label(self, seed: int) -> int | None:
        """Class of the image of a ``seed``; None for an unconditional image."""
        return self.class_labels[seed % len(self.class_labels)] if self.class_labels else None

    @abstractmethod
    def draw(
        self, seeds: Sequence[int], guidance: Guidance | None = None, recorders: Sequence[Recorder] = ()
    ) -> Samples:
        """Sample one image for each seed.

        Args:
            seeds: seeds >= 0.
            guidance: guidance method; None for the module's.
            recorders: additional recorders of these images.
        """

    def all_draws(self) -> list[Draw]:
        """The passes of ``dng test``: the unguided images, and those of each guidance."""
        others = [Draw.of(guidance) for guidance in self.guidances if guidance != self.unguided]
        return [Draw(EvaluationRun.reference("Unguided"), self.unguided), *others]

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Samples]:
        """Images of a batch of seeds."""
        return {"samples": self.draw(batch.tolist(), self.draws[dataloader_idx].guidance)}

    def predict_step(self, batch: Tensor, batch_idx: int) -> Samples:
        """Images of a batch of seeds."""
        return self.draw(batch.tolist())


class ChainSampler(ImageSampler):
    """An ``ImageSampler`` whose chain is that of ``sampling.sample``."""

    tracks_passively = True

    @abstractmethod
    def predictor(self, guidance: Guidance, class_labels: Tensor | None = None) -> Predictor:
        """A predictor with the loaded networks.

        Args:
            guidance: guidance that uses the predictions.
            class_labels: class of each image, (B,); None for unconditional images.
        """

    def decode(self, x_0: Tensor) -> Tensor:
        """Decode the end of the chain to images (B, C, H, W) in about [-1, 1]; the identity in pixel space."""
        return x_0

    def draw(
        self,
        seeds: Sequence[int],
        guidance: Guidance | None = None,
        recorders: Sequence[Recorder] = (),
        predictor: Predictor | None = None,
    ) -> Samples:
        """See ``ImageSampler.draw``; ``predictor`` is a new one of other networks, None for the module's."""
        guidance = guidance or self.guidance
        labels = torch.tensor([self.class_label(s) for s in seeds], device=self.device) if self.class_labels else None
        predictor = predictor or self.predictor(guidance, labels)
        every = [*self.recorders, *recorders]
        return draw_samples(self, predictor, seeds, guidance, self.sampler, self.chain_shape, every, self.decode)


def _note_references(found: dict[str, str], part: Any) -> Any:
    if isinstance(references := getattr(part, "references", None), References):
        found[f"references {references.source}"] = hashlib.sha256(references.images.numpy().tobytes()).hexdigest()[:12]
    return part


def check_finite(images: Tensor, seeds: Sequence[int]) -> None:
    """Check that the images of these seeds are numbers.

    Raises:
        SettingError: an image is not finite.
    """
    if not images.isfinite().all():
        raise SettingError(
            f"the images of seeds {seeds[0]} to {seeds[-1]} are not finite: lower the guidance's scale; where unguided "
            "images are not finite either, the checkpoint is damaged or trainer.precision too low"
        )


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
    """Sample one image for each seed, in the trainer's precision.

    Args:
        module: a LightningModule with a ``schedule``.
        predictor: new predictor.
        seeds: seeds >= 0.
        guidance: guidance method.
        sampler: sampler of the reverse chain.
        shape: (C, H, W) of the states of the chain.
        recorders: called at each step.
        decode: decodes the end of the chain to images.

    Raises:
        SettingError: an image is not finite.
    """
    noise, seen = ImageNoise(seeds, shape, module.device), Trajectories()
    precision = nullcontext() if module._trainer is None else module.trainer.precision_plugin.forward_context()
    with precision:
        images = decode(sample(predictor, guidance, module.schedule, noise, sampler, [seen, *recorders]))
    check_finite(images, seeds)
    times = [module.schedule.fraction(level) for level in seen.levels]
    return Samples(list(seeds), images, times, seen.scale, seen.posterior, predictor.nfe / len(seeds))
