"""Training of image classifiers.

A classifier of clean images labels generated images and gives the features of Fréchet distances. A classifier of noisy
images gives p(c | x_t) at every noise level, for ``ClassifierPosterior`` and ``ClassifierGuidance``.
"""

from collections.abc import Sequence
from typing import Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn
from torch.nn import functional

from dng_lightning.data.resize import random_windows
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.runs import Labels
from dng_lightning.kernel import NoiseLevel
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.schedule import NoiseSchedule


class ClassifierModule(TrainedModule):
    """Trains a classifier by cross-entropy on randomly shifted images, optionally with cutout.

    Args:
        net: network ``net(x)``: images (B, C, H, W) in [-1, 1] to logits (B, num_classes); as a feature extractor it
            needs ``features(x)`` and ``num_features`` too, see ``ImageClassifier``. With a ``schedule`` it is
            ``net(x_t, t)``, and has ``noise_conditional = True``.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        shift: greatest random shift of the training images in each direction, in pixels; background is -1.
        label_smoothing: in [0, 1); values above 0 bias the probabilities.
        cutout: side of the square that is hidden in each training image (DeVries & Taylor, 2017); 0 for none.
        schedule: noise schedule of the diffusion model, to classify images at its noise levels, which are sampled
            uniformly; None to classify clean images.

    Raises:
        SettingError: a noise-conditional network has no schedule, or another network has one.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        shift: int = 2,
        label_smoothing: float = 0.0,
        cutout: int = 0,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        super().__init__()
        self.keep_hyperparameters("net", "optimizer", "scheduler", "schedule")
        if getattr(net, "noise_conditional", False) != (schedule is not None):
            raise SettingError(
                "a classifier of noisy images needs a network with a time input: set model.net.embedding"
                if schedule
                else "a noise-conditional network needs model.schedule, that of the diffusion model (LinearSchedule)"
            )
        self.net = net.to(memory_format=torch.channels_last)
        self.schedule = schedule
        self.optimizer, self.scheduler = optimizer, scheduler
        self.shift, self.cutout = shift, cutout
        self.label_smoothing = label_smoothing

    def forward(self, x: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W), which are noisy if there are ``timesteps`` (B,)."""
        logits: Tensor = self.net(x) if timesteps is None else self.net(x, timesteps)
        return logits

    def label(self, x: Tensor) -> Labels:
        """The most probable class of each image (B, C, H, W) in [-1, 1], and its probability."""
        confidence, labels = self.probabilities(x).max(dim=1)
        return Labels(labels, confidence)

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of each class, float32 (B, num_classes).

        In evaluation mode and fp32 in any precision of the trainer.

        Args:
            x: images (B, C, H, W) in [-1, 1].
        """
        return in_fp32(self, x).softmax(dim=1)

    def log_posterior(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Log p(c | x_t) of each class, in evaluation mode and fp32 in any precision of the trainer.

        Differentiable in ``x_t`` if gradients are enabled.

        Args:
            x_t: noisy images (B, C, H, W).
            level: their noise level.

        Returns:
            float32 (B, num_classes).
        """
        timesteps = torch.full((len(x_t),), level.timestep, device=x_t.device)
        return in_fp32(self, x_t, timesteps).log_softmax(dim=1)

    @classmethod
    def load(cls, name: str, noisy: bool = False) -> Self:
        """Load a checkpoint for use, see ``TrainedModule.load``.

        Args:
            name: see ``TrainedModule.load``.
            noisy: load a classifier of noisy images, for ``log_posterior``; else of clean images, for ``label``.

        Raises:
            SettingError: see ``TrainedModule.load``, or the classifier is of the other kind.
        """
        module = super().load(name)
        if noisy and not module.schedule:
            raise SettingError(f"{name} classifies clean images: name a noise-conditional classifier")
        if module.schedule and not noisy:
            raise SettingError(f"{name} classifies noisy images: name a classifier of clean ones")
        return module

    def output_shape(self, image: Tensor) -> tuple[Sequence[int], Sequence[int]]:
        """See ``TrainedModule.output_shape``."""
        x_t, _, timesteps = self._noised(image, Generator(image.device).manual_seed(0))
        return self(x_t, timesteps).shape, (1, len(self.class_names))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy on shifted images with cutout, which are noisy if there is a schedule."""
        images, labels = batch
        x_t, _, timesteps = self._noised(random_cutout(random_shift(images, self.shift), self.cutout))
        loss = functional.cross_entropy(self(x_t, timesteps), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def evaluate(self, stage: str, batch: tuple[Tensor, Tensor], generator: Generator) -> None:
        """See ``TrainedModule.log_classification``."""
        images, labels = batch
        x_t, t, timesteps = self._noised(images, generator)
        self.log_classification(stage, self(x_t, timesteps), labels, t, self.schedule.T if self.schedule else 0)

    def _noised(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Noisy images, their random levels and timesteps (B,); the images themselves without a schedule."""
        if not self.schedule:
            return x, None, None
        x_t, _, t = self.schedule.noised(x, generator)
        return x_t, t, self.schedule.timestep(t)


def in_fp32(module: TrainedModule, x: Tensor, *conditions: Tensor) -> Tensor:
    """The output of a module for ``x`` (B, ...) in fp32 and in evaluation mode, in any precision of the trainer."""
    was_training = module.net.training
    module.net.eval()
    if next(module.net.parameters(), x).device != x.device:
        module.to(x.device)
    with torch.autocast(x.device.type, enabled=False):
        output: Tensor = module(x.to(module.dtype), *conditions).float()
    module.net.train(was_training)
    return output


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Shift each image by random whole numbers of pixels, with background at the border.

    Args:
        images: (B, C, H, W) in [-1, 1].
        pixels: greatest shift in each of the four directions, >= 0.

    Returns:
        (B, C, H, W).
    """
    if pixels == 0:
        return images
    padded = functional.pad(images, [pixels] * 4, value=-1.0)
    return random_windows(padded, (images.shape[2], images.shape[3]))


def random_cutout(images: Tensor, side: int) -> Tensor:
    """Replace a square of each image, centred on a random pixel, by mid-grey.

    Args:
        images: (B, C, H, W) in [-1, 1].
        side: side of the square in pixels, >= 0.

    Returns:
        (B, C, H, W).
    """
    if side == 0:
        return images
    batch, _, height, width = images.shape

    def hidden(length: int) -> Tensor:  # (B, length): the rows, or the columns, of each image's square
        start = torch.randint(length, (batch, 1), device=images.device) - side // 2
        place = torch.arange(length, device=images.device)
        return (start <= place) & (place < start + side)

    square = hidden(height)[:, None, :, None] & hidden(width)[:, None, None, :]
    return images.masked_fill(square, 0.0)
