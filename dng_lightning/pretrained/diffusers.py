"""Models in diffusers' format: pixel-space models such as `google/ddpm-cifar10-32`, and class-conditional latent ones.

A folder in this format has a `model_index.json`. A pixel-space network and its scheduler are in the same folder, or in
`unet` and `scheduler`; a `DiTPipeline` such as `facebook/DiT-XL-2-256` is in `transformer`, `vae` and `scheduler`.
"""

import json
from pathlib import Path
from typing import Any

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.networks.diffusers import DiffusersNetwork, LatentDecoder
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained import diffusers_format
from dng_lightning.pretrained.base import ModelParts, PretrainedModel
from dng_lightning.pretrained.diffusers_format import INDEX, classes_of, flow_or_edm, prediction_of, schedule_of
from dng_lightning.schedule import NoiseSchedule

TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second one in older files
PATTERNS = ["*.json", "*.safetensors", "*.bin"]


class DiffusersModel(PretrainedModel):
    """A `UNet2DModel` or a `DiTPipeline` (extra ``diffusers``), from a folder or the hub.

    Args:
        path: a folder, or a Hugging Face model, `owner/model`, which is downloaded if the cache lacks it.
        revision: branch, tag or commit on the hub.
        subfolder: subfolder with the pipeline, or with the network alone.
        variant: variant of the weight files, such as fp16; None for the files without one, or the only variant.
        schedule: noise schedule; None for that of the model's scheduler.
        prediction: what the network predicts: eps, x0, v, flow or edm; None for the setting of its scheduler.
        class_names: class names of a class-conditional model, a list or a text file with one name per line; None for
            the names in the pipeline's `id2label`, those of the classifier, or numbers.
        null_class: whether the last class embedding is the null class; None to infer it from ``class_names``.
            A `DiTPipeline` always has one.
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
        self.class_names = names_of(class_names)

    def read(self) -> ModelParts:
        """See ``PretrainedModel.read``; the networks are converted to fp32."""
        diffusers = require("diffusers", self.path, "diffusers")
        folder = self._folder() / self.subfolder
        schedule, prediction = self.schedule, self.prediction
        try:
            index = json.loads((folder / INDEX).read_text()) if (folder / INDEX).exists() else {}
            latent = _is_latent(index)
            part, kind = ("transformer", "DiTTransformer2DModel") if latent else ("unet", "UNet2DModel")
            network = self._network(folder, part, getattr(diffusers, kind))
            channels, size = network.config.in_channels, network.config.sample_size
            if network.config.out_channels not in (channels, 2 * channels) or network.config.get("class_embed_type"):
                raise ValueError("its inputs or outputs are not only images and class labels")
            if not size:
                raise ValueError("its network's sample_size, the size of the images, is missing")
            decoder = LatentDecoder(self._network(folder, "vae", diffusers.AutoencoderKL)) if latent else None
            scheduler = _scheduler(diffusers, folder, needed=schedule is None or prediction is None)
            is_clipped = scheduler is not None and scheduler.config.get("clip_sample")
            clip = scheduler.config.clip_sample_range if is_clipped else None
            if schedule is None or prediction is None:
                path = flow_or_edm(scheduler)
                schedule = schedule or (path[0] if path else schedule_of(scheduler))
                prediction = prediction or (path[1] if path else prediction_of(scheduler))
            named = index.get("id2label") or {}
            class_names = self.class_names or tuple(str(named[str(label)]) for label in range(len(named)))
        except Exception as error:  # a foreign folder can fail in any way
            message = f"{folder} holds no pixel or latent diffusion model in diffusers' format: {reason(error)}"
            instead = "; or set schedule and prediction (class_path DiffusersModel)"  # of a scheduler that is not read
            raise SettingError(message + instead * isinstance(error, SettingError)) from error
        embedded = network.config.num_embeds_ada_norm + 1 if latent else network.config.num_class_embeds or 0
        classes = classes_of(embedded, len(class_names), True if latent else self.null_class, str(folder))
        net = DiffusersNetwork(network.float().eval(), *classes, network.config.out_channels == 2 * channels)
        height, width = (size, size) if isinstance(size, int) else size
        return ModelParts(net, schedule, prediction, (channels, height, width), folder, clip, class_names, decoder)

    def _network(self, folder: Path, part: str, kind: Any) -> Any:
        """A network in its subfolder, or, as in Google's models, in the folder itself."""
        subfolder = part if (folder / part).is_dir() else None
        settings = {"low_cpu_mem_usage": False}  # True warns if accelerate is missing
        variant = self.variant or diffusers_format.variant_of(folder / (subfolder or ""))
        return kind.from_pretrained(folder, subfolder=subfolder, variant=variant, **settings)

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


def _is_latent(index: dict[str, Any]) -> bool:
    """Whether a `model_index.json` is that of a `DiTPipeline`; otherwise it is of a pixel-space network, or empty."""
    parts = {part: kind for part, kind in index.items() if isinstance(kind, list)}
    if set(parts) == {"transformer", "vae", "scheduler"} and parts["transformer"][1] in TRANSFORMERS:
        return True
    if parts and (set(parts) != {"unet", "scheduler"} or parts["unet"] != ["diffusers", "UNet2DModel"]):
        raise ValueError(
            "it is not a UNet2DModel with a scheduler and nothing else, nor a DiTPipeline; a text-to-image model is "
            "for --config stable_diffusion.yaml or sd3.yaml"
        )
    return False


def _scheduler(diffusers: Any, folder: Path, needed: bool) -> Any:
    """The folder's scheduler; None if it is missing and not needed."""
    place = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    config = place / "scheduler_config.json"
    if not config.exists():
        if needed:
            raise ValueError("it has no scheduler: set schedule and prediction (class_path DiffusersModel)")
        return None
    return getattr(diffusers, json.loads(config.read_text())["_class_name"]).from_pretrained(place)
