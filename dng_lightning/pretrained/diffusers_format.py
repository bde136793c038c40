"""Models in diffusers' format: of pixels, such as `google/ddpm-cifar10-32`, and class-conditional ones of latents.

A folder in that format has a `model_index.json`. A network of pixels and its scheduler lie in the same folder or in
`unet` and `scheduler`; a `DiTPipeline`, such as `facebook/DiT-XL-2-256`, in `transformer`, `vae` and `scheduler`.
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
TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the latter is what its older files are called
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def find(name: str, pipeline: str = "DiffusionPipeline", without: Sequence[str] = ()) -> Path:
    """The file of a checkpoint of ours, or the `model_index.json` of one of diffusers'.

    Args:
        name: as ``resources.checkpoint`` takes it, or a model of the Hugging Face hub, `owner/model`, which is
            downloaded if it is not in its cache. What exists here wins.
        pipeline: the class of diffusers' that downloads it.
        without: parts of it that are not downloaded.

    Raises:
        SettingError: there is none, it cannot be had, or diffusers is not installed.
    """
    try:
        return resources.checkpoint(name)
    except SettingError:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or name.endswith(".ckpt") or Path(name).parent.is_dir():
            raise
    where = f"{name} is not a checkpoint here, and"
    diffusers = require("diffusers", f"{where} a model of the Hugging Face hub", "diffusers")
    try:
        return Path(getattr(diffusers, pipeline).download(name, **dict.fromkeys(without))) / INDEX
    except Exception as error:  # no connection, no such model, not for everybody, not a pipeline
        raise SettingError(f"{where} not to be had from the Hugging Face hub: {reason(error)}") from error


def read(
    folder: Path,
    variant: str | None = None,
    schedule: NoiseSchedule | None = None,
    prediction: Prediction | None = None,
    class_names: Sequence[str] = (),
    null_class: bool | None = None,
) -> ModelParts:
    """Read a folder in diffusers' format: a pipeline's, or that of a network of pixels alone.

    Args:
        folder: with a `model_index.json`, or with the `config.json` of a `UNet2DModel`.
        variant: of the files of weights, such as fp16; the network computes in fp32 all the same.
        schedule: None for that of the scheduler in the folder, whose T levels are its timesteps 0..T - 1.
        prediction: None for that of the scheduler.
        class_names: of a class-conditional network; empty for those of its `id2label`, if it has one.
        null_class: whether the last embedding of a class-conditional network is that of no class; None where it follows
            from the number of ``class_names``. A `DiTPipeline` has one.

    Raises:
        SettingError: diffusers is not installed, the folder is damaged, holds another kind of model, or does not say
            all that must be known.
    """
    diffusers = require("diffusers", str(folder), "diffusers")
    try:
        index = json.loads((folder / INDEX).read_text()) if (folder / INDEX).exists() else {}
        latent = _is_latent(index)
        plain = {"low_cpu_mem_usage": False, "variant": variant}  # else a warning asks for another library
        part, kind = ("transformer", "DiTTransformer2DModel") if latent else ("unet", "UNet2DModel")
        network = getattr(diffusers, kind).from_pretrained(folder, subfolder=_part(folder, part), **plain)
        channels, size = network.config.in_channels, network.config.sample_size
        if network.config.out_channels not in (channels, 2 * channels) or network.config.get("class_embed_type"):
            raise ValueError("it takes or gives something else than images and class labels")
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
        message = f"{folder} holds no model of pixels or latents in diffusers' format: {reason(error)}"
        raise SettingError(message) from error
    embedded = network.config.num_embeds_ada_norm + 1 if latent else network.config.num_class_embeds or 0
    classes = classes_of(embedded, len(class_names), True if latent else null_class, str(folder))
    net = DiffusersNetwork(network.float().eval(), *classes, network.config.out_channels == 2 * channels)
    decoder, shape = LatentDecoder(vae) if vae else None, (channels, height, width)
    return ModelParts(net, schedule, prediction, shape, folder, clip, class_names, decoder)


def _is_latent(index: dict[str, Any]) -> bool:
    """Whether a `model_index.json` is a `DiTPipeline`'s; else it is that of a network of pixels, or empty."""
    parts = {part: kind for part, kind in index.items() if isinstance(kind, list)}
    if set(parts) == {"transformer", "vae", "scheduler"} and parts["transformer"][1] in TRANSFORMERS:
        return True
    if parts and (set(parts) != {"unet", "scheduler"} or parts["unet"] != ["diffusers", "UNet2DModel"]):
        raise ValueError("it is not a UNet2DModel with a scheduler and nothing else, nor a DiTPipeline")
    return False


def _scheduler(diffusers: Any, folder: Path, needed: bool) -> Any:
    """The folder's scheduler; None where there is none, and none is needed."""
    place = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    config = place / "scheduler_config.json"
    if not config.exists():
        if needed:
            raise ValueError("it has no scheduler: set schedule and prediction (class_path DiffusersModel)")
        return None
    return getattr(diffusers, json.loads(config.read_text())["_class_name"]).from_pretrained(place)


def classes_of(embedded: int, named: int, null_class: bool | None, folder: str) -> tuple[int, bool]:
    """The number of classes, and whether there is an embedding of no class."""
    if null_class is None and embedded and named not in (embedded, embedded - 1):
        names = f", not {named}" if named else ""
        raise SettingError(
            f"{folder} has {embedded} class embeddings{names}: name its class_names, or say with null_class whether "
            "the last of them is that of no class (class_path DiffusersModel)"
        )
    has_null = embedded == named + 1 if null_class is None else null_class
    classes = max(embedded - has_null, 0)
    if named and named != classes:
        raise SettingError(f"{folder} has {classes} classes, and class_names {named}")
    return classes, has_null


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The noise levels of one of diffusers' schedulers; with ``rescale_betas_zero_snr`` they end in pure noise.

    Raises:
        SettingError: its levels are not those of DDPM by its betas (variance-exploding, EDM, flow matching,
            consistency), or it changes the denoised prediction by more than a bound.
    """
    name, config = type(scheduler).__name__, scheduler.config
    known = "DDPMScheduler" in getattr(scheduler, "_compatibles", ()) and hasattr(scheduler, "betas")
    alpha_bar = (1 - scheduler.betas.double()).cumprod(0) if known else torch.zeros(0)
    # some shift the levels, and do not say so in their betas
    if not known or not torch.allclose(alpha_bar.float(), scheduler.alphas_cumprod.float(), atol=1e-5):
        raise SettingError(f"the noise levels of its {name} are not those of DDPM, which are read here")
    for setting in ("thresholding", "use_flow_sigmas"):
        if config.get(setting):
            raise SettingError(f"the {setting} of its {name} is not known here: set it to false to do without")
    return NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def flow_or_edm(scheduler: Any) -> tuple[NoiseSchedule, Prediction] | None:
    """The schedule and prediction of a network of pixels under a flow's or EDM's scheduler; None for others.

    The network is told sigma T by a flow, ln(sigma) / 4 by EDM.

    Raises:
        SettingError: the scheduler has settings that are not known here.
    """
    name, config = type(scheduler).__name__, scheduler.config
    is_flow, is_edm = name.startswith("FlowMatchEuler"), name.startswith("EDM")
    if not (is_flow or is_edm):
        return None
    others = ("use_dynamic_shifting", "invert_sigmas", "shift_terminal", "stochastic_sampling")
    if any(config.get(setting) for setting in others) or (
        is_edm and (config.prediction_type, config.sigma_data) != ("epsilon", SIGMA_DATA)
    ):
        raise SettingError(f"the settings of its {name} are not known here: set schedule and prediction")
    sigma = scheduler.sigmas[scheduler.sigmas > 0].double().cpu().flip(0)
    if is_flow:
        times = torch.cat([torch.zeros(1), sigma * config.num_train_timesteps])
        return NoiseSchedule(1 - sigma, sigma, times), "flow"
    logs = sigma.log() / 4
    times = torch.cat([2 * logs[:1] - logs[1:2], logs])  # at the data, where nothing is evaluated: one step on
    return NoiseSchedule(torch.ones_like(sigma), sigma, times), "edm"


def prediction_of(scheduler: Any) -> Prediction:
    """What a network under one of diffusers' schedulers predicts.

    Raises:
        SettingError: it is something that is not known here.
    """
    kind = scheduler.config.prediction_type
    if kind not in PREDICTIONS:
        raise SettingError(f"the prediction_type of its {type(scheduler).__name__}, {kind}, is not known here")
    return PREDICTIONS[kind]


def _part(folder: Path, name: str) -> str | None:
    return name if (folder / name).is_dir() else None  # google's have everything in one folder
