"""What the trainings of all denoisers have in common, whatever they are told of an image."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor

from dng_lightning.errors import SettingError
from dng_lightning.modules.trained import TrainedModule
from dng_lightning.parametrization import NEEDS_SIGNAL, Prediction
from dng_lightning.schedule import NoiseSchedule


class DenoisingModule(TrainedModule, ABC):
    """Learns what was noised at random levels; a subclass says of what, and what the network is told.

    Args:
        schedule: the noise schedule.
        prediction: what the network predicts: eps, x0, v, flow or edm.
        snr_gamma: weigh the levels by min-SNR-gamma (Hang et al., 2023, who take 5); None to weigh the errors of
            what is predicted alike (Ho et al.'s simple loss). Validation always does that.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        compile: compile the network for training.

    Raises:
        SettingError: a setting is out of its range, or the schedule starts where the prediction has no meaning.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        prediction: Prediction,
        snr_gamma: float | None,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        compile: bool,
    ) -> None:
        super().__init__()
        if snr_gamma is not None and not snr_gamma > 0:
            raise SettingError(f"snr_gamma must be above 0, or null; got {snr_gamma}")
        if prediction in NEEDS_SIGNAL and float(schedule.alpha[-1]) == 0:
            raise SettingError(
                f"prediction {prediction} has no denoised prediction at pure noise, where this schedule starts: "
                "take flow, v or x0, or a rectified flow with u_max below 1"
            )
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.snr_gamma = snr_gamma
        self.optimizer, self.scheduler = optimizer, scheduler
        self.compile_net = compile

    def setup(self, stage: str) -> None:
        """Take over the facts about the data; compile the network if asked."""
        super().setup(stage)
        if self.compile_net and stage == "fit":
            self.net.compile()

    @abstractmethod
    def batch_losses(self, batch: Any, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """The error of each image of a batch, (B,), and the level that it was made at, (B,).

        Args:
            batch: of the datamodule.
            generator: source of all that is drawn; None for torch's global one.
        """

    def noised(self, x_0: Tensor, dropout: float, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw what the network is asked.

        Args:
            x_0: images, or latents of them, (B, C, H, W).
            dropout: share of the images that it is told nothing of, in [0, 1].
            generator: source of the levels, noise and dropout; None for torch's global one.

        Returns:
            x_t and what is to be predicted of it, (B, C, H, W); the levels t in 1..T, (B,); and of which images it is
            told nothing, (B,).
        """
        batch, device = len(x_0), x_0.device
        t = torch.randint(1, self.schedule.T + 1, (batch,), device=device, generator=generator)
        noise = torch.randn(x_0.shape, dtype=x_0.dtype, device=device, generator=generator)
        dropped = torch.rand(batch, device=device, generator=generator) < dropout
        target = self.schedule.target(x_0, t, noise, self.prediction)
        return self.schedule.add_noise(x_0, t, noise), target, t, dropped

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of the loss, the levels weighed as asked."""
        losses, t = self.batch_losses(batch, None)
        if self.snr_gamma is not None:
            losses = losses * self.schedule.min_snr_weight(t, self.snr_gamma, self.prediction)
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(losses))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The loss on held-out images, at the same levels and noise each time, whole and by quarter of the levels."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The loss on the test images, as in validation."""
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Any, batch_idx: int, stage: str) -> None:
        seed = batch_idx * self.trainer.world_size + self.global_rank
        losses, t = self.batch_losses(batch, Generator(self.device).manual_seed(seed))
        self.log(f"{stage}/loss", losses.mean(), batch_size=len(losses), sync_dist=True, prog_bar=True)
        self.log_by_level(f"{stage}/loss_t", losses, t, self.schedule.T)
