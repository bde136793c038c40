"""Data module of sampling: one seed per image."""

from collections.abc import Collection

from lightning import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader

from dng_lightning.data.base import ImageDataModule
from dng_lightning.errors import SettingError, check_at_least


class Seeds(LightningDataModule):
    """The seeds first_seed .. first_seed + num_samples - 1; the image of a seed does not depend on the others.

    Attributes:
        finished: seeds that ``predict`` leaves out.
        passes: number of passes of ``test`` over all seeds, one for each guidance.

    Args:
        num_samples: number of images, at least 1.
        first_seed: seed of the first image, at least 0; first_seed + num_samples is at most 2^32.
        batch_size: images sampled together, at least 1.
        reference_data: real images of the reference statistics in ``test``; None for the statistics in the checkpoint's
            folder.
    """

    def __init__(
        self,
        num_samples: int = 64,
        first_seed: int = 0,
        batch_size: int = 64,
        reference_data: ImageDataModule | None = None,
    ) -> None:
        super().__init__()
        self.reference_data = reference_data
        check_at_least(1, **{"data.num_samples": num_samples, "data.batch_size": batch_size})
        check_at_least(0, **{"data.first_seed": first_seed})
        if first_seed + num_samples > 2**32:
            raise SettingError(
                "data.first_seed + data.num_samples must not be above 2^32: torch tells no more seeds apart"
            )
        self.seeds = range(first_seed, first_seed + num_samples)
        self.batch_size = batch_size
        self.finished: Collection[int] = ()
        self.passes = 1

    def predict_dataloader(self) -> DataLoader[int]:
        """The seeds that are not finished, in order, sharded over devices by the trainer."""
        todo = [seed for seed in self.seeds if seed not in self.finished]
        if todo:  # every device needs a seed, even if it repeats a finished image
            spare = [seed for seed in self.seeds if seed in self.finished] or todo
            missing = max((self.trainer.world_size if self.trainer else 1) - len(todo), 0)
            todo += (spare * missing)[:missing]
        return self._loader(todo)

    def test_dataloader(self) -> list[DataLoader[int]]:
        """All seeds in order, once per pass, sharded over devices without repetition.

        Raises:
            SettingError: there are fewer seeds than devices.
        """
        if self.trainer and len(self.seeds) < self.trainer.world_size:
            raise SettingError(f"data.num_samples is {len(self.seeds)}: give at least one image to each device")
        return [self._loader(list(self.seeds)) for _ in range(self.passes)]

    def _loader(self, seeds: list[int]) -> DataLoader[int]:
        sampler = None
        if self.trainer and self.trainer.world_size > 1 and seeds:
            # Lightning's default sampler for tests would repeat images to even the shards
            shard = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
            sampler = UnrepeatedDistributedSampler(seeds, shuffle=False, **shard)
        return DataLoader(seeds, batch_size=self.batch_size, sampler=sampler)  # type: ignore[arg-type]  # a list will do
