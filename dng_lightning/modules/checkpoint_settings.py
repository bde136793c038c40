"""Loads the settings of a guidance that are files: a checkpoint's calibration, and reference images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dng_lightning.data.decode import decode, image_files
from dng_lightning.data.pixels import from_pillow, to_float
from dng_lightning.errors import SettingError, reason
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.references import References
from dng_lightning.guidance.serialization import map_settings
from dng_lightning.posterior import CalibratedPosterior, Posterior, ProbePosterior, TrackedPosterior
from dng_lightning.posterior.calibration import Rows, check_calibration
from dng_lightning.storage import resources

CALIBRATION = "calibration.yaml"
OVERVIEWS = ("grid.png", "trajectories.png")  # written by `dng predict` to the folder of the images

BEYOND = 1.01  # bound on floats in [-1, 1] after resizing or rounding

G = TypeVar("G", bound=Guidance)


def chosen(default: Guidance, guidance: Guidance | None, guidances: Sequence[Guidance] | None) -> list[Guidance]:
    """The guidance of ``dng predict``, and after it those that ``dng test`` compares.

    Args:
        default: guidance if none is given.
        guidance: that of ``dng predict``; None for the first of ``guidances``.
        guidances: those of ``dng test``; None for ``guidance`` only.

    Raises:
        SettingError: ``guidances`` is empty.
    """
    if guidances is not None and not guidances:
        raise SettingError("guidances is empty: name at least one, or set it to null for guidance alone")
    first = guidance or (guidances or [default])[0]
    return [first, *(guidances or [first])]


def load_settings(guidance: G, folder: Path, probe_folder: Path | None = None) -> G:
    """The guidance with the calibrations of the checkpoints, and with its reference images.

    Args:
        guidance: guidance method.
        folder: folder of the model's checkpoint.
        probe_folder: folder of the probe's checkpoint; None without a probe.

    Raises:
        SettingError: a file is damaged, or there are no such images.
    """
    return map_settings(guidance, partial(_loaded, folder=folder, probe_folder=probe_folder))


def _loaded(part: Any, folder: Path, probe_folder: Path | None) -> Any:
    if isinstance(part, CalibratedPosterior) and part.calibration in ("checkpoint", None):
        return _calibrated(part, folder)
    if isinstance(part, ProbePosterior) and part.calibration == "checkpoint" and probe_folder:
        return replace(part, calibration=_rows(probe_folder, "the probabilities are the probe's own", "--model.probe"))
    if isinstance(part, ReferenceGuidance) and isinstance(part.references, str):
        values = {name: getattr(part, name) for name in part.__dataclass_fields__}
        return type(part)(**values | {"references": read_references(part.references)})
    return part


def _calibrated(posterior: CalibratedPosterior, folder: Path) -> Posterior:
    """The posterior with the calibration in the folder; a tracked posterior without one, and for none."""
    values = {name: getattr(posterior, name) for name in ("p_max", "guidance_shift_weight", "divergence")}
    instead = f"the posterior is tracked from the prior {TrackedPosterior().prior}"
    rows = _rows(folder, instead, "--model.checkpoint") if posterior.calibration else None
    return CalibratedPosterior(rows, **values) if rows else TrackedPosterior(**values)


def _rows(folder: Path, instead: str, setting: str) -> Rows | None:
    """The rows of the folder's calibration; None, after a message, if there is none."""
    path = folder / CALIBRATION
    if not path.exists():
        rank_zero_info(
            f"No {CALIBRATION} in {folder}: {instead}, uncalibrated. To fit one: dng test --config calibrate.yaml "
            f"{setting} ..."
        )
        return None
    try:
        guidance = yaml.safe_load(path.read_text())["model"]["init_args"]["guidance"]["init_args"]
        rows = [list(map(float, row)) for row in guidance["posterior"]["init_args"]["calibration"]]
        check_calibration(rows)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} is no calibration: fit it anew (dng test --config calibrate.yaml)") from error
    return rows


@lru_cache(maxsize=8)
def read_references(name: str) -> References:
    """Read reference images as floats in [-1, 1].

    Args:
        name: a ``.pt`` file of one tensor (N, C, H, W), uint8 pixels or floats in [-1, 1]; a folder of image files of
            one size, read as grey if all of them are, else as RGB; or a shipped name.

    Raises:
        SettingError: there are no images, or floats in another or unclear range.
    """
    path = resources.references(name)
    if path.is_dir():
        return References(to_float(_pictures(path)), name)
    try:
        images = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can fail in any way
        raise SettingError(f"references {path} is no .pt file of one tensor") from error
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise SettingError(f"references {path} must hold one tensor of uint8 pixels, or of floats in [-1, 1]")
    if images.ndim < 2 or not len(images):
        raise SettingError(f"references {path} must be images (N, C, H, W); the tensor is {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return References(to_float(images), name)
    low, high = images.min().item(), images.max().item()
    if not (
        -BEYOND <= low < 0 and high <= BEYOND
    ):  # false for NaN; floats without a negative value may be in 0..1 or 0..255
        raise SettingError(
            f"references {path} must be floats in [-1, 1], or uint8 pixels; they are in [{low:g}, {high:g}]"
        )
    return References(images, name)


def _pictures(folder: Path) -> Tensor:
    """The image files in a folder, uint8 (N, C, H, W)."""
    overviews = OVERVIEWS if (folder / "config.yaml").exists() else ()  # a user's own grid.png is an image
    files = [path for path in image_files(folder) if path.parent == folder and path.name not in overviews]
    pictures = []
    for path in files:
        try:
            pictures.append(from_pillow(decode(path, 3)))
        except Exception as error:  # a damaged file can fail in any way
            raise SettingError(f"references {path} cannot be read: {reason(error)}") from error
    if len({picture.shape for picture in pictures}) != 1:
        sizes = ", ".join(sorted({f"{p.shape[2]}x{p.shape[1]}" for p in pictures})) or "none"
        raise SettingError(f"references {folder}: a folder must hold image files, all of one size; found {sizes}")
    images = torch.stack(pictures)
    is_grey = bool((images == images[:, :1]).all())
    return images[:, :1] if is_grey else images
