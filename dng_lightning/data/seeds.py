"""What sampling iterates over: one seed an image."""

from collections.abc import Collection

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from dng_lightning.errors import SettingError


class Seeds(LightningDataModule):
    """The seeds first_seed .. first_seed + n - 1; the image of a seed does not depend on the others.

    Args:
        n: number of images, at least 1.
        first_seed: seed of the first image, at least 0.
        batch_size: images drawn together, at least 1.
    """

    def __init__(self, n: int = 64, first_seed: int = 0, batch_size: int = 64) -> None:
        super().__init__()
        for name, value, least in (("n", n, 1), ("first_seed", first_seed, 0), ("batch_size", batch_size, 1)):
            if value < least:
                raise SettingError(f"data.{name} must be at least {least}; got {value}")
        self.seeds = range(first_seed, first_seed + n)
        self.batch_size = batch_size
        self.finished: Collection[int] = ()

    def predict_dataloader(self) -> DataLoader[int]:
        """The seeds that are not finished, in order, sharded over devices by the trainer."""
        todo = [seed for seed in self.seeds if seed not in self.finished]
        if todo:  # every device needs one, if only to draw a finished image again
            spare = [seed for seed in self.seeds if seed in self.finished] or todo
            missing = (self.trainer.world_size if self.trainer else 1) - len(todo)
            todo += (spare * max(missing, 0))[: max(missing, 0)]
        return DataLoader(todo, batch_size=self.batch_size)  # type: ignore[arg-type]  # a list is a dataset
