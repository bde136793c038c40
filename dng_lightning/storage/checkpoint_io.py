"""Atomic checkpoints of a trainer."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dng_lightning.storage.safe_checkpoint import write_ckpt


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints with ``write_whole``.

    Lightning moves a file from the folder of temporary files, which on another file system is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; an address such as ``s3://`` is left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_ckpt(checkpoint, Path(path))
