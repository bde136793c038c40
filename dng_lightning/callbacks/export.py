"""Exports a trained model: weights and plain hyper-parameters, loaded without running code."""

import inspect
import io
import json
from pathlib import Path

import lightning
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dng_lightning import safe_checkpoint
from dng_lightning.callbacks.requirements import is_dry_run
from dng_lightning.errors import SettingError
from dng_lightning.files import write_whole


class Export(Callback):
    """Writes ``model.ckpt`` (weights, plain hyper-parameters, no optimiser) and ``metrics.json`` when training ends.

    ``model.safetensors`` holds the same in the format that other libraries read.

    They go to the trainer's ``default_root_dir``, where ``config.yaml`` is already: the folder is then what
    ``--model.checkpoint`` takes. With ``EMA`` the weights are the averaged ones.

    Args:
        half: store the weights in half precision: half the size, and more digits than bf16 sampling uses.
        safetensors: write ``model.safetensors`` too.
    """

    def __init__(self, half: bool = False, safetensors: bool = True) -> None:
        self.half, self.safetensors = half, safetensors
        self.has_trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave a dry run alone, which writes nothing.

        Raises:
            SettingError: the module could not be made again from what would be written.
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
        """Take note; the averaged weights may be handed over after this."""
        self.has_trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both, unless a finished training was resumed: then there is nothing new, and no average."""
        if not (trainer.is_global_zero and self.has_trained):
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.write(pl_module, folder)
        metrics = {name: round(float(value), 6) for name, value in sorted(trainer.callback_metrics.items())}
        metrics |= {"steps": trainer.global_step, "epochs": trainer.current_epoch}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    def write(self, module: LightningModule, folder: Path) -> None:
        """Write the weights and what belongs to them."""
        checkpoint: dict[str, object] = {
            "state_dict": {name: self._stored(weight) for name, weight in module.state_dict().items()},
            "hyper_parameters": dict(module.hparams),
            "pytorch-lightning_version": lightning.__version__,  # else Lightning takes it for an old file
        }
        module.on_save_checkpoint(checkpoint)
        file = io.BytesIO()
        torch.save(checkpoint, file)
        write_whole(folder / "model.ckpt", file.getbuffer())
        if self.safetensors:
            safe_checkpoint.write(checkpoint, folder / "model.safetensors")

    def _stored(self, weight: Tensor) -> Tensor:
        weight = weight.cpu().contiguous()
        return weight.half() if self.half and weight.is_floating_point() else weight
