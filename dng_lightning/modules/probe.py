"""Training of a probe, which reads p(c | x_t) from the features of a frozen diffusion model."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn
from torch.nn import functional

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.features import fingerprint
from dng_lightning.kernel import NoiseLevel
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.modules.classifier import in_fp32, random_shift
from dng_lightning.modules.diffusion import DiffusionModule


class ProbeModule(TrainedModule):
    """Trains a small head by cross-entropy on the output of one module of a diffusion network for noisy images.

    The network gets the null class, and noise levels sampled uniformly. It is frozen, and is not stored in the
    checkpoint: the probe is valid for its weights only.

    Args:
        net: ``net(features, timesteps)``, logits (B, num_classes), see ``FeatureProbe``.
        module: name of the module in the diffusion network.
        diffusion_checkpoint: the diffusion model; None for a probe that is loaded for use.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        shift: greatest random shift of the training images in each direction, in pixels; background is -1.

    Attributes:
        read_from: fingerprint of the diffusion model's weights.

    Raises:
        SettingError: the diffusion model cannot be used, or has no such module.
    """

    for_training: ClassVar[tuple[str, ...]] = ("diffusion_checkpoint",)
    model: DiffusionModule | None

    def __init__(
        self,
        net: nn.Module,
        module: str = "middle2",
        diffusion_checkpoint: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        shift: int = 0,
    ) -> None:
        super().__init__()
        self.keep_hyperparameters("net", "optimizer", "scheduler")
        self.net, self.module, self.shift = net, module, shift
        self.optimizer, self.scheduler = optimizer, scheduler
        model = DiffusionModule.load(diffusion_checkpoint) if diffusion_checkpoint else None
        object.__setattr__(self, "model", model)  # not in the module tree: neither trained nor stored
        self.read_from = fingerprint(model) if model else ""

    def forward(self, features: Tensor, timesteps: Tensor) -> Tensor:
        """Logits (B, num_classes) of features (B, C, ...) at ``timesteps`` (B,)."""
        logits: Tensor = self.net(features, timesteps)
        return logits

    @torch.no_grad()
    def log_posterior(self, features: Tensor, level: NoiseLevel) -> Tensor:
        """Log p(c | x_t) of each class, float32 (B, num_classes), in fp32 in any precision of the trainer.

        Args:
            features: features of the base prediction, (B, C, ...).
            level: noise level.
        """
        timesteps = torch.full((len(features),), level.timestep, device=features.device)
        return in_fp32(self, features, timesteps).log_softmax(1)

    def output_shape(self, image: Tensor) -> tuple[Sequence[int], Sequence[int]]:
        """See ``TrainedModule.output_shape``."""
        if tuple(self._model.image_shape) != tuple(image.shape[1:]):
            raise SettingError(f"the diffusion model has images of another shape, {self._model.image_shape}")
        features, timesteps, _ = self._read(image, Generator(image.device).manual_seed(0))
        return self(features, timesteps).shape, (1, len(self.class_names))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy on shifted noisy images."""
        images, labels = batch
        features, timesteps, _ = self._read(random_shift(images, self.shift))
        loss = functional.cross_entropy(self(features, timesteps), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def evaluate(self, stage: str, batch: tuple[Tensor, Tensor], generator: Generator) -> None:
        """See ``TrainedModule.log_classification``."""
        images, labels = batch
        features, timesteps, t = self._read(images, generator)
        self.log_classification(stage, self(features, timesteps), labels, t, self._model.schedule.T)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the fingerprint of the diffusion model."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["read_from"] = self.read_from

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the fingerprint of the diffusion model."""
        super().on_load_checkpoint(checkpoint)
        self.read_from = checkpoint.get("read_from", "")

    @property
    def _model(self) -> DiffusionModule:
        if self.model is None:
            raise SettingError("a probe is trained on a diffusion model's features: set model.diffusion_checkpoint")
        return self.model

    @torch.no_grad()
    def _read(self, x_0: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Features of images at random noise levels, the timesteps, and the levels, (B,)."""
        model, schedule = self._model, self._model.schedule
        if next(model.parameters()).device != x_0.device:
            model.to(x_0.device)
        x_t, _, t = schedule.noised(x_0, generator)
        return model.features(x_t, t, self.module), schedule.timestep(t), t
