"""What the trainings of all denoisers have in common, whatever they are told of an image."""

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Generator, Tensor

from dng_lightning.errors import SettingError
from dng_lightning.modules.optimization import check_schedule, configure
from dng_lightning.modules.trained import TrainedModule
from dng_lightning.schedule import NoiseSchedule, Prediction


class DenoisingModule(TrainedModule, ABC):
    """Learns what was noised at random levels; a subclass says of what, and what the network is told.

    Args:
        schedule: the noise schedule.
        prediction: what the network predicts: eps, x0 or v.
        snr_gamma: weigh the levels by min-SNR-gamma (Hang et al., 2023, who take 5); None to weigh the errors of
            what is predicted alike (Ho et al.'s simple loss). Validation always does that.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        prediction: Prediction,
        snr_gamma: float | None,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__()
        if snr_gamma is not None and not snr_gamma > 0:
            raise SettingError(f"snr_gamma must be above 0, or null; got {snr_gamma}")
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.snr_gamma = snr_gamma
        self.optimizer, self.scheduler = optimizer, scheduler

    @abstractmethod
    def batch_losses(self, batch: Any, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """The error of each image of a batch, (B,), and the level that it was made at, (B,).

        Args:
            batch: of the datamodule.
            generator: source of all that is drawn; None for torch's global one.
        """

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

    def on_train_start(self) -> None:
        """Refuse a run that outlives its learning-rate schedule."""
        check_schedule(self)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The injected optimiser and schedule."""
        return configure(self, self.optimizer, self.scheduler)
