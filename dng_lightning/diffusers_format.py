"""Unconditional models of pixels in diffusers' format, such as `google/ddpm-cifar10-32`: found, and read.

A folder in that format has a `model_index.json`, and its network and scheduler in the same folder or in `unet` and
`scheduler`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dng_lightning import resources
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.networks.diffusers import DiffusersNetwork
from dng_lightning.parametrization import Prediction
from dng_lightning.schedule import NoiseSchedule

INDEX = "model_index.json"
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def find(name: str, pipeline: str = "DDPMPipeline", without: Sequence[str] = ()) -> Path:
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


def read(index: Path) -> tuple[DiffusersNetwork, NoiseSchedule, Prediction, tuple[int, int, int], float | None]:
    """Read a folder in diffusers' format.

    Args:
        index: its `model_index.json`.

    Returns:
        The network, in evaluation mode; the schedule, whose T levels are the scheduler's timesteps 0..T - 1; what the
        network predicts; (C, H, W) of the images; and the scheduler's bound on the denoised prediction, None for none.

    Raises:
        SettingError: diffusers is not installed, the folder is damaged, or holds another kind of model.
    """
    folder = index.parent
    diffusers = require("diffusers", str(folder), "diffusers")
    try:
        held = {part: kind for part, kind in json.loads(index.read_text()).items() if not part.startswith("_")}
        if set(held) != {"unet", "scheduler"} or held["unet"] != ["diffusers", "UNet2DModel"]:
            raise ValueError("it is not a UNet2DModel with a scheduler and nothing else")
        plain = {"low_cpu_mem_usage": False}  # else a warning asks for another library
        network = diffusers.UNet2DModel.from_pretrained(folder, subfolder=_part(folder, "unet"), **plain)
        kind = getattr(diffusers, held["scheduler"][1])
        scheduler = kind.from_pretrained(folder, subfolder=_part(folder, "scheduler"))
        channels, size = network.config.in_channels, network.config.sample_size
        if network.config.out_channels != channels or network.config.num_class_embeds:
            raise ValueError("it is class-conditional, or predicts a variance besides")
        if not size:
            raise ValueError("its network's sample_size, the size of the images, is missing")
        height, width = (size, size) if isinstance(size, int) else size
        schedule, prediction = schedule_of(scheduler), prediction_of(scheduler)
        clip = scheduler.config.clip_sample_range if scheduler.config.get("clip_sample") else None
    except Exception as error:  # a foreign folder can fail in any way
        raise SettingError(
            f"{folder} holds no unconditional model of pixels in diffusers' format: {reason(error)}"
        ) from error
    return DiffusersNetwork(network.eval()), schedule, prediction, (channels, height, width), clip


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
