"""What folders in diffusers' format have in common: how they are found, their schedules, predictions and classes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dng_lightning.errors import SettingError, reason, require
from dng_lightning.parametrization import SIGMA_DATA, Prediction
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.storage import resources

INDEX = "model_index.json"
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


def variant_of(folder: Path) -> str | None:
    """The variant, such as fp16, that all weight files in a folder and its subfolders have; None for no or several."""
    files = [path.name for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]
    variants = {re.search(r"(?:\.(\w+?))?(?:-\d+-of-\d+)?\.\w+$", name)[1] for name in files}  # type: ignore[index]
    return variants.pop() if len(variants) == 1 else None


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
        raise SettingError(
            f"the noise levels of its {name} are not supported: only those of DDPM and flow matching are"
        )
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
        raise SettingError(f"the settings of its {name} are not supported")
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
