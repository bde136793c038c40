"""Exports a trained model: weights and plain hyper-parameters, which are loaded without running code."""

import inspect
import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dng_lightning.callbacks.requirements import is_dry_run
from dng_lightning.errors import SettingError
from dng_lightning.storage import safe_checkpoint
from dng_lightning.storage.files import write_whole


class Export(Callback):
    """Writes ``model.ckpt`` (weights, plain hyper-parameters, no optimiser) and ``metrics.json`` when training ends.

    ``model.safetensors`` has the same contents in the format of other libraries.

    The files are written to the trainer's ``default_root_dir``, next to ``config.yaml``, so that this folder is a valid
    ``--model.checkpoint``. With ``EMA`` the weights are the averaged ones.

    Args:
        half: store the weights in fp16: half the size, and more digits than bf16.
    """

    def __init__(self, half: bool = False) -> None:
        self.half, self.has_trained = half, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable the export in a dry run.

        Raises:
            SettingError: the module cannot be restored from its hyper-parameters.
        """
        is_dry_run(trainer, self)
        arguments = inspect.signature(type(pl_module)).parameters.values()
        needed = [argument.name for argument in arguments if argument.default is argument.empty]
        if missing := [name for name in needed if name not in pl_module.hparams]:
            name = type(pl_module).__name__
            raise SettingError(
                f"Export stores no {missing[0]} that was made in Python: train with dng fit, or keep a ModelCheckpoint "
                f"and load it by {name}.load_from_checkpoint(file, {missing[0]}=...)"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that training took place; ``EMA`` may copy the average to the module after this hook."""
        self.has_trained = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics in the checkpoint, for a training that ends between its last checkpoint and the export."""
        metrics = sorted(trainer.callback_metrics.items())
        checkpoint["metrics"] = {name: round(float(value), 6) for name, value in metrics}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files, ``metrics.json`` last, unless those of a finished training that was resumed are there.

        Such a training takes no step: its average is in the checkpoint alone.
        """
        path = Path(trainer.default_root_dir, "metrics.json")
        steps: Any = {"steps": trainer.global_step, "epochs": trainer.current_epoch}
        is_complete = path.exists() and json.loads(path.read_text()).get("steps") == trainer.global_step
        if not trainer.is_global_zero or (is_complete and not self.has_trained):
            return
        checkpoint: dict[str, Any] = {}
        if self.has_trained:
            self.on_save_checkpoint(trainer, pl_module, checkpoint)
        elif not trainer.ckpt_path:
            raise SettingError("no step was trained: raise trainer.max_steps, max_epochs or limit_train_batches")
        else:
            checkpoint = torch.load(str(trainer.ckpt_path), map_location="cpu", weights_only=True)
            pl_module.load_state_dict(checkpoint["state_dict"])
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write(pl_module, path.parent)
        write_whole(path, (json.dumps(checkpoint.get("metrics", {}) | steps, indent=2) + "\n").encode())

    def write(self, module: LightningModule, folder: Path) -> None:
        """Write the weights and the hyper-parameters to ``folder``."""
        checkpoint: dict[str, object] = {
            "state_dict": {name: self._stored(weight) for name, weight in module.state_dict().items()},
            "hyper_parameters": dict(module.hparams),
            "pytorch-lightning_version": lightning.__version__,  # otherwise Lightning migrates it as an old file
        }
        module.on_save_checkpoint(checkpoint)
        safe_checkpoint.write_ckpt(checkpoint, folder / "model.ckpt")
        safe_checkpoint.write(checkpoint, folder / "model.safetensors")

    def _stored(self, weight: Tensor) -> Tensor:
        weight = weight.cpu().contiguous()
        return weight.half() if self.half and weight.is_floating_point() else weight
