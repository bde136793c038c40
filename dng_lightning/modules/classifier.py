"""Training of the image classifier that judges generated images and provides the features to compare them in."""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from dng_lightning.modules.optimization import check_schedule, configure
from dng_lightning.modules.trained import TrainedModule


class ClassifierModule(TrainedModule):
    """Cross-entropy training of a classifier on randomly shifted images.

    Args:
        net: (B, C, H, W) in [-1, 1] -> logits (B, num_classes); `features(x)` and `num_features` besides, as
            `ImageClassifier` has them, to serve as a feature extractor.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> scheduler, stepped per step; an open `total_steps` is filled in. None: constant rate.
        shift: training images are moved by up to this many pixels in each direction, background (-1) moving in.
        label_smoothing: in [0, 1).
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        shift: int = 2,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.keep_hyperparameters("net", "optimizer", "scheduler")
        self.net = net
        self.optimizer, self.scheduler = optimizer, scheduler
        self.shift = shift
        self.label_smoothing = label_smoothing
        classes = int(net.num_classes)  # type: ignore[arg-type]  # nn.Module does not know it
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [-1, 1]."""
        logits: Tensor = self.net(x)
        return logits

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Label images, in evaluation mode and full precision whatever the trainer runs in.

        Args:
            x: (B, C, H, W) in [-1, 1].

        Returns:
            labels int64 (B,) and their probabilities float32 (B,).
        """
        was_training = self.net.training
        self.net.eval()
        with torch.inference_mode(), torch.autocast(x.device.type, enabled=False):
            confidence, labels = self.net(x.to(self.dtype)).float().softmax(dim=1).max(dim=1)
        self.net.train(was_training)
        return labels, confidence

    def on_train_start(self) -> None:
        """See `dng_lightning.modules.optimization.check_schedule`."""
        check_schedule(self)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy on shifted images."""
        images, labels = batch
        logits = self(random_shift(images, self.shift))
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log `val/loss` and `val/accuracy`."""
        self._evaluate("val", batch, self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log `test/loss` and `test/accuracy`."""
        self._evaluate("test", batch, self.test_accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See `dng_lightning.modules.optimization.configure`."""
        return configure(self, self.optimizer, self.scheduler)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor], accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        self.log(f"{stage}/loss", functional.cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}/accuracy", accuracy, batch_size=len(labels), prog_bar=True)


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
