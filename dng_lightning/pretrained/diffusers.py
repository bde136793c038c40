"""Models of pixels in diffusers' format, where their folder's name is not enough."""

from collections.abc import Sequence
from pathlib import Path

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained import diffusers_format
from dng_lightning.pretrained.base import PretrainedModel
from dng_lightning.pretrained.model_parts import ModelParts
from dng_lightning.schedule import NoiseSchedule

WANTED = ["*.json", "*.safetensors", "*.bin"]


class DiffusersModel(PretrainedModel):
    """A `UNet2DModel` (extra ``diffusers``), unconditional or class-conditional, in a folder or on the hub.

    Args:
        path: a folder, or a model of the Hugging Face hub, `owner/model`, which is downloaded if its cache lacks it.
        revision: a branch, tag or commit on the hub.
        subfolder: where in it the pipeline, or the network alone, lies.
        variant: of the files of weights, such as fp16.
        schedule: None for that of its scheduler.
        prediction: what it predicts: eps, x0, v, flow or edm; None for what its scheduler says.
        class_names: of a class-conditional model, a list or a text file with one a line; None for those of the
            classifier, or their numbers.
        null_class: whether its last class embedding is that of no class; None where that follows from ``class_names``.
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
        patterns = [str(Path(self.subfolder, "**", wanted)) for wanted in WANTED]
        patterns += [str(Path(self.subfolder, wanted)) for wanted in WANTED]
        try:
            return Path(hub.snapshot_download(self.path, revision=self.revision, allow_patterns=patterns))
        except Exception as error:  # no connection, no such model
            raise SettingError(
                f"{self.path} is no folder here, and not to be had from the Hugging Face hub: {reason(error)}"
            ) from error
