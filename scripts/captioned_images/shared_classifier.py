"""One network that classifies all attributes of an image, with a head for each."""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn
from torch.nn import functional

from dng_lightning.modules.base_module import TrainedModule


class SharedClassifierModule(TrainedModule):
    """Cross-entropy training of a classifier of all attributes, on data whose label is `each`.

    The network's outputs are the logits of the values of the first attribute, then those of the second, and so on.

    Args:
        net: (B, C, H, W) in [-1, 1] -> logits (B, values of all attributes), with ``features`` and ``num_features``, as
            ``ImageClassifier`` has them.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.keep_hyperparameters("net", "optimizer", "scheduler")
        self.net = net.to(memory_format=torch.channels_last)
        self.optimizer, self.scheduler = optimizer, scheduler

    @property
    def num_features(self) -> int:
        """Width of the penultimate features."""
        return int(self.net.num_features)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of all attributes."""
        loss = self._loss(self._heads(batch))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def evaluate(self, stage: str, batch: tuple[Tensor, Tensor], generator: Generator) -> None:
        """Log the loss and the accuracy of each attribute."""
        heads = self._heads(batch)
        self.log(f"{stage}/loss", self._loss(heads), batch_size=len(batch[1]), sync_dist=True, prog_bar=True)
        for name, (logits, labels) in zip(self._values(), heads, strict=True):
            accuracy = (logits.argmax(1) == labels).float().mean()
            self.log(f"{stage}/accuracy_{name}", accuracy, batch_size=len(labels), sync_dist=True)

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> list[Tensor]:
        """The probability of every value of each attribute, A of (B, values), float32.

        Args:
            x: (B, C, H, W) in [-1, 1].
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = self.net(x.to(self.dtype)).float()
        return [part.softmax(1) for part in logits.split([*self._values().values()], dim=1)]

    def read(self, x: Tensor) -> Tensor:
        """The labels of all attributes, int64 (B, A); see ``probabilities``."""
        return torch.stack([part.argmax(1) for part in self.probabilities(x)], 1)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate features, (B, num_features)."""
        features: Tensor = self.net.features(x)  # type: ignore[operator]
        return features

    def _heads(self, batch: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Logits and labels of each attribute."""
        images, labels = batch
        logits = self.net(images).split([*self._values().values()], dim=1)
        return list(zip(logits, labels.unbind(1), strict=True))

    @staticmethod
    def _loss(heads: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack([functional.cross_entropy(*head) for head in heads]).mean()

    def _values(self) -> dict[str, int]:
        """The number of values of each attribute."""
        counts: dict[str, int] = {}
        for name in self.class_names:  # "skin light"
            attribute = name.partition(" ")[0]
            counts[attribute] = counts.get(attribute, 0) + 1
        return counts
