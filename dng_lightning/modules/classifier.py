"""Training of the image classifier that judges generated images and provides the features to compare them in.

Trained on noisy images it gives p(c | x_t) at every level instead, which is what an oracle guides by.
"""

from collections.abc import Sequence
from typing import Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn
from torch.nn import functional

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.runs import Labels
from dng_lightning.kernel import NoiseLevel
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.schedule import NoiseSchedule


class ClassifierModule(TrainedModule):
    """Cross-entropy training of a classifier on images that are randomly shifted and, optionally, partly hidden.

    Args:
        net: (B, C, H, W) in [-1, 1] -> logits (B, num_classes); `features(x)` and `num_features` besides, as
            `ImageClassifier` has them, to serve as a feature extractor. With a `schedule`, `net(x_t, t)`, and
            `noise_conditional` says that it is one.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> scheduler, stepped per step; an open `total_steps` is filled in. None: constant rate.
        shift: training images are moved by up to this many pixels in each direction, background (-1) moving in.
        label_smoothing: in [0, 1); anything but 0 biases the probabilities.
        cutout: side of the square of each training image that is hidden (DeVries & Taylor, 2017); 0 for none.
        schedule: classify images noised to a random level of it, each level as often as any other; it must be that of
            the diffusion model whose images are to be judged. None to classify clean images.

    Raises:
        SettingError: the network is noise-conditional and there is no schedule, or the other way round.
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
        """Logits (B, num_classes) of images (B, C, H, W); noisy ones need their levels' timesteps (B,)."""
        logits: Tensor = self.net(x) if timesteps is None else self.net(x, timesteps)
        return logits

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Label images, in evaluation mode and full precision whatever the trainer runs in.

        Args:
            x: (B, C, H, W) in [-1, 1].

        Returns:
            labels int64 (B,) and their probabilities float32 (B,).
        """
        confidence, labels = self.probabilities(x).max(dim=1)
        return labels, confidence

    def label(self, x: Tensor) -> Labels:
        """The same as ``classify`` gives, for an evaluation."""
        return Labels(*self.classify(x))

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """The probability of every class, (B, num_classes) float32; see ``classify``."""
        return self._judge(x).softmax(dim=1)

    def log_posterior(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Log p(c | x_t) of every class, in evaluation mode and full precision whatever the trainer runs in.

        Differentiable in ``x_t`` where gradients are on.

        Args:
            x_t: noisy images (B, C, H, W).
            level: their noise level.

        Returns:
            (B, num_classes) float32.
        """
        timesteps = torch.full((len(x_t),), level.timestep, device=x_t.device)
        return self._judge(x_t, timesteps).log_softmax(dim=1)

    @classmethod
    def load(cls, name: str, noisy: bool = False) -> Self:
        """Load a checkpoint for use, see ``TrainedModule.load``.

        Args:
            name: as there.
            noisy: load one of noisy images, for ``log_posterior``; else one of clean images, for ``classify``.

        Raises:
            SettingError: also if it is the other kind.
        """
        module = super().load(name)
        if noisy and not module.schedule:
            raise SettingError(f"{name} classifies clean images: name a noise-conditional classifier")
        if module.schedule and not noisy:
            raise SettingError(f"{name} classifies noisy images: name a classifier of clean ones")
        return module

    def _judge(self, x: Tensor, timesteps: Tensor | None = None) -> Tensor:
        was_training = self.net.training
        self.net.eval()
        if next(self.net.parameters(), x).device != x.device:
            self.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self(x.to(self.dtype), timesteps).float()
        self.net.train(was_training)
        return logits

    def output_shape(self, image: Tensor) -> tuple[Sequence[int], Sequence[int]]:
        """See ``TrainedModule.output_shape``."""
        x_t, _, timesteps = self._noised(image, Generator(image.device).manual_seed(0))
        return self(x_t, timesteps).shape, (1, len(self.class_names))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy on shifted and partly hidden images, noised if there is a schedule."""
        images, labels = batch
        x_t, _, timesteps = self._noised(random_cutout(random_shift(images, self.shift), self.cutout))
        loss = functional.cross_entropy(self(x_t, timesteps), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def evaluate(self, stage: str, batch: tuple[Tensor, Tensor], generator: Generator) -> None:
        """Log loss and accuracy; of noisy images also by quarter of the levels."""
        images, labels = batch
        x_t, t, timesteps = self._noised(images, generator)
        logits = self(x_t, timesteps)
        right = (logits.argmax(1) == labels).float()
        for name, values in (("loss", functional.cross_entropy(logits, labels, reduction="none")), ("accuracy", right)):
            bar = name == "accuracy"
            self.log(f"{stage}/{name}", values.mean(), batch_size=len(labels), sync_dist=True, prog_bar=bar)
            if self.schedule and t is not None:
                self.log_by_level(f"{stage}/{name}_t", values, t, self.schedule.T)

    def _noised(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Images at random levels, the levels and their timesteps (B,); as they are without a schedule."""
        if not self.schedule:
            return x, None, None
        t = torch.randint(1, self.schedule.T + 1, (len(x),), device=x.device, generator=generator)
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return self.schedule.add_noise(x, t, noise), t, self.schedule.timestep(t)


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Move each image by its own whole number of pixels; what moves in is background.

    Args:
        images: (B, C, H, W) in [-1, 1].
        pixels: largest shift in each of the four directions, >= 0.

    Returns:
        (B, C, H, W).
    """
    if pixels == 0:
        return images
    batch, _, height, width = images.shape
    padded = functional.pad(images, [pixels] * 4, value=-1.0)
    start = torch.randint(2 * pixels + 1, (2, batch, 1), device=images.device)
    rows = start[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = start[1] + torch.arange(width, device=images.device)  # (B, W)
    image = torch.arange(batch, device=images.device)[:, None, None]
    # advanced indices around a slice put the indexed dimensions first: (B, H, W, C)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_cutout(images: Tensor, side: int) -> Tensor:
    """Hide a square of each image in mid-grey, centred on any of its pixels: at a border a part of it.

    Args:
        images: (B, C, H, W) in [-1, 1].
        side: of the square, in pixels, >= 0.

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
