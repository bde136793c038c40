"""Images of one guidance on disk, for evaluations with little memory, several processes and interruptions.

Each process writes the batches that it draws; one of them merges these into arrays ordered by seed. Results that are
computed from these arrays do not depend on the number of processes.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.storage import safe_checkpoint
from dng_lightning.storage.mapped_array import mapped_array

BLOCK = 1000  # images in memory at once


class SampleStore:
    """Arrays of a range of seeds, such as pixels, labels and features, below one folder.

    Args:
        folder: folder of the arrays, which is created by the first write.
        seeds: all seeds, consecutive.
    """

    def __init__(self, folder: Path, seeds: range) -> None:
        self.folder, self.seeds = folder, seeds

    @property
    def is_complete(self) -> bool:
        """Whether all images are sampled and merged."""
        return (self.folder / "complete").exists()

    def write(self, seeds: Sequence[int], **arrays: Tensor) -> None:
        """Store a batch of ``seeds`` (B,): arrays (B, ...) by name, the same names in each batch."""
        parts = self.folder / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        batch = {name: values.cpu() for name, values in arrays.items()}
        safe_checkpoint.write_ckpt(batch | {"seeds": torch.tensor(seeds)}, parts / f"{seeds[0]}.pt")

    def merge(self) -> None:
        """Merge all batches in the order of the seeds; call it once, when all processes are done.

        Raises:
            SettingError: images of some seeds are missing, for example if processes do not share a file system.
        """
        arrays: dict[str, np.memmap] = {}
        missing = set(self.seeds)
        for part in (self.folder / "parts").glob("*.pt"):
            batch = torch.load(part, weights_only=True)
            seeds = batch.pop("seeds")
            missing -= set(seeds.tolist())
            for name, values in batch.items():
                if name not in arrays:
                    shape, dtype = (len(self.seeds), *values.shape[1:]), values.numpy().dtype
                    arrays[name] = mapped_array(self.folder / f"{name}.npy", dtype, shape)
                arrays[name][(seeds - self.seeds.start).numpy()] = values.numpy()
        if missing:
            raise SettingError(
                f"{self.folder} lacks the images of {len(missing)} of {len(self.seeds)} seeds, first {min(missing)}: "
                "all processes must write to one file system (--trainer.default_root_dir)"
            )
        for array in arrays.values():
            array.flush()
        shutil.rmtree(self.folder / "parts")
        (self.folder / "complete").touch()

    def keep_only(self, count: int, *names: str) -> None:
        """Keep the first ``count`` rows of the named arrays, and delete the other arrays, after the evaluation."""
        for path in self.folder.glob("*.npy"):
            if path.stem in names:
                np.save(path, self.first(path.stem, count).numpy())
            else:
                path.unlink()

    def clear(self) -> None:
        """Delete all arrays."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Whether there is an array of that name."""
        return (self.folder / f"{name}.npy").exists()

    def all(self, name: str) -> Tensor:
        """A whole array, in the order of the seeds; for small arrays."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy"))

    def first(self, name: str, count: int) -> Tensor:
        """The first ``count`` rows of an array."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="r")[:count].copy())

    def blocks(self, name: str) -> Iterator[Tensor]:
        """An array in blocks of at most ``BLOCK`` rows."""
        array = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        for start in range(0, len(array), BLOCK):
            yield torch.from_numpy(array[start : start + BLOCK].copy())
