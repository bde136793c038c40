"""What a run saves about its origin: ``config.yaml``, ``environment.json``, and hashes of the files that it reads."""

import contextlib
import json
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from dng_lightning.cli import environment
from dng_lightning.errors import SettingError
from dng_lightning.modules.image_sampler import ImageSampler
from dng_lightning.storage.files import remove_parts, write_whole

ENVIRONMENT = "environment.json"
INPUTS = "inputs.json"  # hashes of the weights and other files that the settings name


class SaveConfig(SaveConfigCallback):
    """Saves ``config.yaml`` to ``default_root_dir``, with any logger, after all checks.

    The file reproduces the run anywhere: it does not contain the logger's folder and the checkpoint of a resumed
    training. ``environment.json`` lists what else the output depends on, an entry for each environment in which the
    folder was written; for a sampling, ``inputs.json`` holds hashes of the weights.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save nothing yet: other callbacks and the module have not been checked. Tidy up after killed processes."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # a connector's
            remove_parts(Path(trainer.default_root_dir))

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder, config = Path(trainer.default_root_dir), self.config.clone()
        folder.mkdir(parents=True, exist_ok=True)
        config.ckpt_path = None
        text = self.parser.dump(config, skip_none=False)
        write_whole(folder / "config.yaml", text.encode())
        path, entry = folder / ENVIRONMENT, environment.describe(trainer, config.get("seed_everything"))
        entries = json.loads(path.read_text()) if path.exists() else []
        if entry not in entries:
            write_whole(path, json.dumps([*entries, entry], indent=1).encode())
        if isinstance(pl_module, ImageSampler):
            before, now = inputs_of(folder), pl_module.inputs(calibration=trainer.predicting)
            if not now.items() <= before.items():
                write_whole(folder / INPUTS, json.dumps(before | now, indent=1).encode())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do not write a checkpoint of a training that was refused."""
        for keeper in trainer.checkpoint_callbacks if isinstance(exception, SettingError) else ():
            keeper.save_on_exception = False  # type: ignore[attr-defined]  # looked at later, as they come last

    on_train_start = on_test_start = on_predict_start = _save


def inputs_of(folder: Path) -> dict[str, str]:
    """The hashes that a folder's ``inputs.json`` holds; empty without one.

    Raises:
        SettingError: the file is damaged.
    """
    path = folder / INPUTS
    with contextlib.suppress(ValueError):
        hashes = json.loads(path.read_bytes()) if path.exists() else {}
        if isinstance(hashes, dict):
            return hashes
    raise SettingError(f"{path} is damaged: name another --trainer.default_root_dir, or remove the folder")


def difference(before: Any, now: Any, name: str) -> str:
    """The first setting in which two configurations differ; empty if there is none."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return "" if before == now else f"{name} {json.dumps(before)} instead of {json.dumps(now)}"
    inside = (
        difference(
            before.get(key), now.get(key), name if key in ("class_path", "init_args") else f"{name}.{key}".lstrip(".")
        )
        for key in {**before, **now}
    )
    return next(filter(None, inside), "")
