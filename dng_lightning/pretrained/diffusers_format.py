"""Models in diffusers' format: pixel-space models such as `google/ddpm-cifar10-32`, and class-conditional latent ones.

A folder in this format has a `model_index.json`. A pixel-space network and its scheduler are in the same folder, or in
`unet` and `scheduler`; a `DiTPipeline` such as `facebook/DiT-XL-2-256` is in `transformer`, `vae` and `scheduler`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dng_lightning.errors import SettingError, reason, require
from dng_lightning.networks.diffusers import DiffusersNetwork, LatentDecoder
from dng_lightning.parametrization import SIGMA_DATA, Prediction
from dng_lightning.pretrained.model_parts import ModelParts
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.storage import resources

INDEX = "model_index.json"
TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second one in older files
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def find(name: str, without: Sequence[str] = ()) -> Path:
    """The file of a checkpoint of this package, or the `model_index.json` of a model in diffusers' format.

    Args:
        name: see ``resources.checkpoint``; or a Hugging Face model, `owner/model`, which is downloaded if the cache
            lacks it. A local file or folder takes precedence.
        without: components that are not downloaded.

    Raises:
        SettingError: the checkpoint is missing or cannot be downloaded, or diffusers is not installed.
    """
    try:
        return resources.checkpoint(name)
    except SettingError:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or name.endswith(".ckpt") or Path(name).parent.is_dir():
            raise
    where = f"{name} is not a checkpoint here, and"
    diffusers = require("diffusers", f"{where} a model of the Hugging Face hub", "diffusers")
    try:
        return Path(diffusers.DiffusionPipeline.download(name, **dict.fromkeys(without))) / INDEX
    except Exception as error:  # no connection, no such model, a gated one, not a pipeline
        raise SettingError(f"{where} cannot be downloaded from the Hugging Face hub: {reason(error)}") from error


def read(
    folder: Path,
    variant: str | None = None,
    schedule: NoiseSchedule | None = None,
    prediction: Prediction | None = None,
    class_names: Sequence[str] = (),
    null_class: bool | None = None,
) -> ModelParts:
    """Read a folder in diffusers' format, of a pipeline or of a pixel-space network alone.

    Args:
        folder: folder with a `model_index.json`, or with the `config.json` of a `UNet2DModel`.
        variant: variant of the weight files, such as fp16; the network is converted to fp32.
        schedule: noise schedule; None for that of the scheduler in the folder, with its timesteps 0..T - 1.
        prediction: what the network predicts; None for the setting of the scheduler.
        class_names: class names; empty for those of the pipeline's `id2label`, if it has one.
        null_class: whether the last class embedding is the null class; None to infer it from the number of
            ``class_names``. A `DiTPipeline` always has a null class.

    Raises:
        SettingError: diffusers is not installed, the folder is damaged or holds another kind of model, or a setting is
            missing.
    """
    diffusers = require("diffusers", str(folder), "diffusers")
    try:
        index = json.loads((folder / INDEX).read_text()) if (folder / INDEX).exists() else {}
        latent = _is_latent(index)
        plain = {"low_cpu_mem_usage": False, "variant": variant}  # True warns if accelerate is missing
        part, kind = ("transformer", "DiTTransformer2DModel") if latent else ("unet", "UNet2DModel")
        network = getattr(diffusers, kind).from_pretrained(folder, subfolder=_part(folder, part), **plain)
        channels, size = network.config.in_channels, network.config.sample_size
        if network.config.out_channels not in (channels, 2 * channels) or network.config.get("class_embed_type"):
            raise ValueError("its inputs or outputs are not only images and class labels")
        if not size:
            raise ValueError("its network's sample_size, the size of the images, is missing")
        height, width = (size, size) if isinstance(size, int) else size
        vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae", **plain) if latent else None
        scheduler = _scheduler(diffusers, folder, needed=schedule is None or prediction is None)
        clip = scheduler.config.clip_sample_range if scheduler and scheduler.config.get("clip_sample") else None
        if schedule is None or prediction is None:
            path = flow_or_edm(scheduler)
            schedule = schedule or (path[0] if path else schedule_of(scheduler))
            prediction = prediction or (path[1] if path else prediction_of(scheduler))
        named = index.get("id2label") or {}
        class_names = tuple(class_names) or tuple(str(named[str(label)]) for label in range(len(named)))
    except Exception as error:  # a foreign folder can fail in any way
        message = f"{folder} holds no pixel or latent diffusion model in diffusers' format: {reason(error)}"
        raise SettingError(message) from error
    embedded = network.config.num_embeds_ada_norm + 1 if latent else network.config.num_class_embeds or 0
    classes = classes_of(embedded, len(class_names), True if latent else null_class, str(folder))
    net = DiffusersNetwork(network.float().eval(), *classes, network.config.out_channels == 2 * channels)
    decoder, shape = LatentDecoder(vae) if vae else None, (channels, height, width)
    return ModelParts(net, schedule, prediction, shape, folder, clip, class_names, decoder)


def _is_latent(index: dict[str, Any]) -> bool:
    """Whether a `model_index.json` is that of a `DiTPipeline`; otherwise it is of a pixel-space network, or empty."""
    parts = {part: kind for part, kind in index.items() if isinstance(kind, list)}
    if set(parts) == {"transformer", "vae", "scheduler"} and parts["transformer"][1] in TRANSFORMERS:
        return True
    if parts and (set(parts) != {"unet", "scheduler"} or parts["unet"] != ["diffusers", "UNet2DModel"]):
        raise ValueError("it is not a UNet2DModel with a scheduler and nothing else, nor a DiTPipeline")
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


def classes_of(embedded: int, named: int, null_class: bool | None, folder: str) -> tuple[int, bool]:
    """The number of classes, and whether there is an embedding of the null class."""
    if null_class is None and embedded and named not in (embedded, embedded - 1):
        names = f", not {named}" if named else ""
        raise SettingError(
            f"{folder} has {embedded} class embeddings{names}: set class_names, or null_class, which says whether the "
            "last one is the null class (class_path DiffusersModel)"
        )
    has_null = embedded == named + 1 if null_class is None else null_class
    classes = max(embedded - has_null, 0)
    if named and named != classes:
        raise SettingError(f"{folder} has {classes} classes, but class_names has {named}")
    return classes, has_null


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The noise levels of a diffusers scheduler; with ``rescale_betas_zero_snr`` the last one is pure noise.

    Raises:
        SettingError: the levels are not those of a DDPM with the scheduler's betas (variance-exploding, EDM, flow
            matching, consistency), or the scheduler changes the denoised prediction by more than a bound.
    """
    name, config = type(scheduler).__name__, scheduler.config
    known = "DDPMScheduler" in getattr(scheduler, "_compatibles", ()) and hasattr(scheduler, "betas")
    alpha_bar = (1 - scheduler.betas.double()).cumprod(0) if known else torch.zeros(0)
    # some schedulers shift the levels without a change of their betas
    if not known or not torch.allclose(alpha_bar.float(), scheduler.alphas_cumprod.float(), atol=1e-5):
        raise SettingError(f"the noise levels of its {name} are not supported: only those of DDPM are")
    for setting in ("thresholding", "use_flow_sigmas"):
        if config.get(setting):
            raise SettingError(f"the {setting} of its {name} is not supported: set it to false")
    return NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def flow_or_edm(scheduler: Any) -> tuple[NoiseSchedule, Prediction] | None:
    """Schedule and prediction of a pixel-space network under a flow-matching or EDM scheduler; None for others.

    The network's timestep is sigma T for a flow and ln(sigma) / 4 for EDM.

    Raises:
        SettingError: the scheduler has settings that are not supported.
    """
    name, config = type(scheduler).__name__, scheduler.config
    is_flow, is_edm = name.startswith("FlowMatchEuler"), name.startswith("EDM")
    if not (is_flow or is_edm):
        return None
    others = ("use_dynamic_shifting", "invert_sigmas", "shift_terminal", "stochastic_sampling")
    if any(config.get(setting) for setting in others) or (
        is_edm and (config.prediction_type, config.sigma_data) != ("epsilon", SIGMA_DATA)
    ):
        raise SettingError(f"the settings of its {name} are not supported: set schedule and prediction")
    sigma = scheduler.sigmas[scheduler.sigmas > 0].double().cpu().flip(0)
    if is_flow:
        times = torch.cat([torch.zeros(1), sigma * config.num_train_timesteps])
        return NoiseSchedule(1 - sigma, sigma, times), "flow"
    logs = sigma.log() / 4
    times = torch.cat([2 * logs[:1] - logs[1:2], logs])  # the first one, at the data, is never evaluated
    return NoiseSchedule(torch.ones_like(sigma), sigma, times), "edm"


def prediction_of(scheduler: Any) -> Prediction:
    """What a network under a diffusers scheduler predicts.

    Raises:
        SettingError: the prediction type is not supported.
    """
    kind = scheduler.config.prediction_type
    if kind not in PREDICTIONS:
        raise SettingError(f"the prediction_type {kind} of its {type(scheduler).__name__} is not supported")
    return PREDICTIONS[kind]


def _part(folder: Path, name: str) -> str | None:
    return name if (folder / name).is_dir() else None  # Google's models have everything in one folder
