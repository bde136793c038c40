"""Pixel-space models in diffusers' format that need settings besides the name of their folder."""

from collections.abc import Sequence
from pathlib import Path

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained import diffusers_format
from dng_lightning.pretrained.base import PretrainedModel
from dng_lightning.pretrained.model_parts import ModelParts
from dng_lightning.schedule import NoiseSchedule

PATTERNS = ["*.json", "*.safetensors", "*.bin"]


class DiffusersModel(PretrainedModel):
    """A `UNet2DModel` (extra ``diffusers``), unconditional or class-conditional, from a folder or the hub.

    Args:
        path: a folder, or a Hugging Face model, `owner/model`, which is downloaded if the cache lacks it.
        revision: branch, tag or commit on the hub.
        subfolder: subfolder with the pipeline, or with the network alone.
        variant: variant of the weight files, such as fp16.
        schedule: noise schedule; None for that of the model's scheduler.
        prediction: what the network predicts: eps, x0, v, flow or edm; None for the setting of its scheduler.
        class_names: class names of a class-conditional model, a list or a text file with one name per line; None for
            the names of the classifier, or numbers.
        null_class: whether the last class embedding is the null class; None to infer it from ``class_names``.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        subfolder: str = "",
        variant: str | None = None,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction | None = None,
        class_names: list[str] | str | None = None,
        null_class: bool | None = None,
    ) -> None:
        self.path, self.revision, self.subfolder, self.variant = path, revision, subfolder, variant
        self.schedule, self.prediction, self.null_class = schedule, prediction, null_class
        self.class_names: Sequence[str] = names_of(class_names, path) if class_names is not None else ()

    def read(self) -> ModelParts:
        """See ``PretrainedModel.read``."""
        folder = self._folder() / self.subfolder
        given = (self.schedule, self.prediction, self.class_names, self.null_class)
        return diffusers_format.read(folder, self.variant, *given)

    def _folder(self) -> Path:
        if Path(self.path).is_dir():
            return Path(self.path)
        hub = require("huggingface_hub", f"{self.path} is no folder here, and a model of the hub", "diffusers")
        patterns = [str(Path(self.subfolder, part, name)) for part in ("**", "") for name in PATTERNS]
        try:
            return Path(hub.snapshot_download(self.path, revision=self.revision, allow_patterns=patterns))
        except Exception as error:  # no connection, no such model
            raise SettingError(
                f"{self.path} is no folder here, and cannot be downloaded from the Hugging Face hub: {reason(error)}"
            ) from error
