"""Loads the settings of a guidance that are files: a checkpoint's calibration, and reference images."""

from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dng_lightning import resources
from dng_lightning.data.pixels import from_png, to_float
from dng_lightning.errors import SettingError
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.references import References
from dng_lightning.guidance.serialization import map_settings
from dng_lightning.posterior import CalibratedPosterior, Posterior, TrackedPosterior

CALIBRATION = "calibration.yaml"
OVERVIEWS = ("grid.png", "trajectories.png")  # figures that `dng predict` writes to the images' folder

G = TypeVar("G", bound=Guidance)


def load_settings(guidance: G, folder: Path) -> G:
    """The guidance with the calibration of the checkpoint in ``folder`` and with its reference images read.

    Raises:
        SettingError: a file is damaged, or there are no such images.
    """
    return map_settings(guidance, partial(_loaded, folder=folder))


def _loaded(part: Any, folder: Path) -> Any:
    if isinstance(part, CalibratedPosterior) and part.calibration == "checkpoint":
        return _calibrated(part, folder)
    if isinstance(part, ReferenceGuidance) and isinstance(part.references, str):
        values = {name: getattr(part, name) for name in part.__dataclass_fields__}
        return type(part)(**values | {"references": read_references(part.references)})
    return part


def _calibrated(posterior: CalibratedPosterior, folder: Path) -> Posterior:
    """The posterior with the rows of the folder's file; a tracked one, said in a line, where there is none."""
    path = folder / CALIBRATION
    values = {name: getattr(posterior, name) for name in ("p_max", "guidance_shift_weight", "divergence")}
    if not path.exists():
        rank_zero_info(
            f"No {CALIBRATION} in {folder}: the posterior is tracked from the prior {TrackedPosterior().prior}, "
            "uncalibrated. To fit one: dng test --config calibrate.yaml --model.checkpoint ..."
        )
        return TrackedPosterior(**values)
    try:
        guidance = yaml.safe_load(path.read_text())["model"]["init_args"]["guidance"]["init_args"]
        rows = guidance["posterior"]["init_args"]["calibration"]
        return CalibratedPosterior(calibration=[list(map(float, row)) for row in rows], **values)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} is no calibration: fit it anew (dng test --config calibrate.yaml)") from error


@lru_cache(maxsize=8)
def read_references(name: str) -> References:
    """Reference images, floats in [-1, 1].

    Args:
        name: a ``.pt`` file of one tensor (N, C, H, W), uint8 pixels or floats in [-1, 1]; a folder of PNG files, such
            as ``dng predict`` writes; or a shipped name.

    Raises:
        SettingError: it holds no images.
    """
    path = resources.references(name)
    if path.is_dir():
        pictures = [from_png(file) for file in sorted(path.glob("*.png")) if file.name not in OVERVIEWS]
        if len({picture.shape for picture in pictures}) != 1:
            raise SettingError(f"references {path}: a folder must hold PNG files, all of one shape")
        return References(to_float(torch.stack(pictures)), name)
    try:
        images = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise SettingError(f"references {path} is no .pt file of one tensor") from error
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise SettingError(f"references {path} must hold one tensor of uint8 pixels, or of floats in [-1, 1]")
    if images.ndim < 2 or not len(images):
        raise SettingError(f"references {path} must be images (N, C, H, W); the tensor is {tuple(images.shape)}")
    return References(to_float(images) if images.dtype == torch.uint8 else images, name)
