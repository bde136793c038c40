"""The images of one guidance on disk, so that an evaluation needs little memory, any number of processes, and can stop.

Each process writes the batches that it draws; one of them merges these into arrays ordered by seed. Whatever is
computed from those does not depend on how the drawing was shared out.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dng_lightning.errors import SettingError

ARRAYS = ("pixels", "labels", "features", "posteriors", "trajectories", "attributes")
BLOCK = 1000  # images that are looked at together


class SampleStore:
    """Images, labels and features of a range of seeds, below one folder.

    Args:
        folder: made when something is written.
        seeds: all of them, consecutive.
    """

    def __init__(self, folder: Path, seeds: range) -> None:
        self.folder, self.seeds = folder, seeds

    @property
    def is_complete(self) -> bool:
        """Whether everything was drawn and merged."""
        return (self.folder / "complete").exists()

    def write(
        self,
        seeds: Sequence[int],
        pixels: Tensor,
        labels: Tensor,
        features: Tensor,
        posteriors: Tensor | None = None,
        trajectories: Tensor | None = None,
        attributes: Tensor | None = None,
    ) -> None:
        """Keep one batch.

        Args:
            seeds: (B,).
            pixels: uint8 (B, C, H, W).
            labels: (B,).
            features: (B, d).
            posteriors: of passive trackers, (B, ...); None for none.
            trajectories: what the guidance did at each step, (B, S, ...); None for nothing.
            attributes: all that was read in the images, (B, ...), where the label is not all; None for nothing.
        """
        parts = self.folder / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        nothing = torch.zeros(len(pixels), 0)
        values = (pixels, labels, features, posteriors, trajectories, attributes)
        batch = {name: (nothing if v is None else v).cpu() for name, v in zip(ARRAYS, values, strict=True)}
        torch.save(batch | {"seeds": torch.tensor(seeds)}, parts / f"{seeds[0]}.pt")

    def merge(self) -> None:
        """Order everything that was written by seed; call it once, when all processes are done.

        Raises:
            SettingError: images of some seeds are missing, as where processes do not share a file system.
        """
        arrays: dict[str, np.memmap] = {}
        missing = set(self.seeds)
        for part in (self.folder / "parts").glob("*.pt"):
            batch = torch.load(part, weights_only=True)
            rows = (batch["seeds"] - self.seeds.start).numpy()
            missing -= set(batch["seeds"].tolist())
            for name in ARRAYS:
                values = batch[name].numpy()
                if name not in arrays:
                    shape, path = (len(self.seeds), *values.shape[1:]), self.folder / f"{name}.npy"
                    arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
                arrays[name][rows] = values
        if missing:
            raise SettingError(
                f"{self.folder} lacks the images of {len(missing)} of {len(self.seeds)} seeds, first {min(missing)}: "
                "all processes must write to one file system (--trainer.default_root_dir)"
            )
        for array in arrays.values():
            array.flush()
        shutil.rmtree(self.folder / "parts")
        (self.folder / "complete").touch()

    def keep_only(self, count: int, everything: bool = False) -> None:
        """Once measured, keep the first ``count`` images to look at, and no features; or ``everything``."""
        if everything:
            return
        for name in ("pixels", "labels"):
            np.save(self.folder / f"{name}.npy", self.first(name, count).numpy())
        for name in ARRAYS[2:]:
            (self.folder / f"{name}.npy").unlink()

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def all(self, name: str) -> Tensor:
        """One of ``ARRAYS``, whole, in the order of the seeds; for the small ones."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy"))

    def first(self, name: str, count: int) -> Tensor:
        """The first ``count`` rows of one of ``ARRAYS``."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="r")[:count].copy())

    def blocks(self, name: str) -> Iterator[Tensor]:
        """One of ``ARRAYS`` in blocks of at most ``BLOCK`` images."""
        array = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        for start in range(0, len(array), BLOCK):
            yield torch.from_numpy(array[start : start + BLOCK].copy())
