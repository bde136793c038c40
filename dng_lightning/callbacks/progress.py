"""A progress bar of sampling, with an estimate of the remaining time."""

from typing import Any, NoReturn

from lightning import Trainer
from torch import Tensor
from tqdm import tqdm

from dng_lightning.sampling import Recorder


class SamplingProgress(Recorder):
    """A progress bar over the steps of all images of a process.

    Args:
        trainer: trainer, whose first process shows the bar in a terminal.
        images: number of images of the process.
        steps: number of steps per image.
    """

    def __init__(self, trainer: Trainer, images: int, steps: int) -> None:
        hidden = None if trainer.is_global_zero else True  # None: hidden without a terminal
        settings: dict[str, Any] = {"unit": " steps of an image", "unit_scale": True, "leave": False}
        self.bar: tqdm[NoReturn] = tqdm(total=images * steps, disable=hidden, **settings)

    def start(self, x_T: Tensor, conditions: int) -> None:
        """Note the number of images per step."""
        self.images = len(x_T)

    def record(self, *_: Any) -> None:
        """Advance the bar by one step of each image."""
        self.bar.update(self.images)

    def close(self) -> None:
        """Close the bar."""
        self.bar.close()
