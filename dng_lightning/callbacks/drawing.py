"""Base class of the callbacks that keep the images of ``dng predict`` and ``dng test``."""

import uuid
from pathlib import Path
from typing import Any, NoReturn

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from dng_lightning.data.seeds import Seeds
from dng_lightning.errors import SettingError
from dng_lightning.modules.image_sampler import ImageSampler
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


class DrawingCallback(Callback):
    """Requires a sampler and its seeds, and shows the progress of sampling.

    Attributes:
        module: the sampler.
        data: the seeds.
    """

    module: ImageSampler
    data: Seeds
    progress: SamplingProgress

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the sampler and the seeds.

        Raises:
            SettingError: the model is not a sampler, the data are not seeds, or another callback decides about them.
        """
        name, data = type(self).__name__, getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, ImageSampler):
            raise SettingError(f"{name} goes with a GuidedSampler; the model is {type(pl_module).__name__}")
        if not isinstance(data, Seeds):
            raise SettingError(f"{name} goes with data Seeds; they are {type(data).__name__}")
        self.module, self.data = pl_module, data
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, DrawingCallback) and other is not self:
                names = f"{name} and {type(other).__name__}"
                raise SettingError(f"{names} both decide what is sampled: keep one of them in trainer.callbacks")

    def check_shared(self, trainer: Trainer) -> None:
        """Check that all processes write to one folder, before any image is sampled.

        Raises:
            SettingError: nodes have different folders of this name.
        """
        if trainer.world_size == 1:
            return
        folder = Path(trainer.default_root_dir)
        name = f".shared-{uuid.uuid4().hex}"  # a new one, about which no file system has cached anything
        mark = folder / trainer.strategy.broadcast(name)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        trainer.strategy.barrier("marked")
        is_shared = trainer.strategy.reduce_boolean_decision(mark.exists())
        if trainer.is_global_zero:
            mark.unlink()
        if not is_shared:
            raise SettingError(
                f"{folder} is a different folder on each node: set --trainer.default_root_dir to a shared one"
            )

    def show_progress(self, trainer: Trainer, images: int, *recorders: Recorder) -> None:
        """Show the progress of this process's ``images``; ``recorders`` record each step, too."""
        self.progress = SamplingProgress(trainer, images, self.module.sampler.steps)
        self.module.recorders = [self.progress, *recorders]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the progress bar."""
        self.progress.close()

    on_test_end = on_predict_end
