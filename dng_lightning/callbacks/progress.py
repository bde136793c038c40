"""A progress bar of sampling, with an estimate of the time that is left."""

from typing import Any, NoReturn

from lightning import Trainer
from torch import Tensor
from tqdm import tqdm

from dng_lightning.sampling import Recorder


class SamplingProgress(Recorder):
    """A progress bar over the steps of all images of a process.

    Args:
        trainer: whose first process shows the bar, where there is a terminal.
        images: that the process draws.
        steps: of an image.
    """

    def __init__(self, trainer: Trainer, images: int, steps: int) -> None:
        hidden = None if trainer.is_global_zero else True  # None: where there is no terminal
        settings: dict[str, Any] = {"unit": " steps of an image", "unit_scale": True, "leave": False}
        self.bar: tqdm[NoReturn] = tqdm(total=images * steps, disable=hidden, **settings)

    def start(self, x_T: Tensor, conditions: int) -> None:
        """Note how many images a step is of."""
        self.images = len(x_T)

    def record(self, *_: Any) -> None:
        """Move the bar by a step of each image."""
        self.bar.update(self.images)

    def close(self) -> None:
        """Take the bar off the screen."""
        self.bar.close()
