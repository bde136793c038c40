"""Unconditional models of pixels in diffusers' format, such as `google/ddpm-cifar10-32`: found, and read.

A folder in that format has a `model_index.json`, and its network and scheduler in the same folder or in `unet` and
`scheduler`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def read(index: Path) -> tuple[DiffusersNetwork, NoiseSchedule, Prediction, tuple[int, int, int]]:
    """Read a folder in diffusers' format.

    Args:
        index: its `model_index.json`.

    Returns:
        The network, in evaluation mode; the schedule, whose T levels are the scheduler's timesteps 0..T - 1; what the
        network predicts; and (C, H, W) of the images.

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
        scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder=_part(folder, "scheduler"))
        channels, size = network.config.in_channels, network.config.sample_size
        if network.config.out_channels != channels or network.config.num_class_embeds:
            raise ValueError("it is class-conditional, or predicts a variance besides")
        height, width = (size, size) if isinstance(size, int) else size
        schedule = schedule_of(scheduler)
        prediction = PREDICTIONS[scheduler.config.prediction_type]
    except Exception as error:  # a foreign folder can fail in any way
        raise SettingError(
            f"{folder} holds no unconditional model of pixels in diffusers' format: {reason(error)}"
        ) from error
    return DiffusersNetwork(network.eval()), schedule, prediction, (channels, height, width)


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The noise levels of one of diffusers' schedulers; with ``rescale_betas_zero_snr`` they end in pure noise."""
    alpha_bar = (1 - scheduler.betas.double()).cumprod(0)
    return NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def _part(folder: Path, name: str) -> str | None:
    return name if (folder / name).is_dir() else None  # google's have everything in one folder
