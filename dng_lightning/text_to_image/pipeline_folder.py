"""Opens the pipeline of a folder in diffusers' format."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dng_lightning.errors import SettingError, reason
from dng_lightning.pretrained import diffusers_format
from dng_lightning.text_to_image.layouts import LAYOUTS
from dng_lightning.text_to_image.optional_deps import Precision, dtype_of, libraries, quiet

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def open_pipeline(name: str, precision: Precision, kinds: Sequence[str]) -> tuple[Any, Path]:
    """Open a pipeline, with its networks in evaluation mode.

    Args:
        name: a folder in diffusers' format, or a model of the Hugging Face hub, `owner/model`, which is downloaded if
            the cache lacks it. A local folder takes precedence.
        precision: precision of its networks.
        kinds: the classes that are supported.

    Returns:
        the pipeline, and its folder.

    Raises:
        SettingError: there is none, it is damaged or of another class, or the extra is not installed.
    """
    dtype, (diffusers, _) = dtype_of(precision), libraries()
    index = diffusers_format.find(name, UNUSED)
    if Path(name).is_file() and index.name != diffusers_format.INDEX:
        raise SettingError(
            f"{name} is a single file: make a folder of it once, by diffusers' StableDiffusionPipeline."
            f"from_single_file({str(index)!r}).save_pretrained(FOLDER), and name that as checkpoint"
        )
    folder = index.parent
    try:
        config = diffusers.DiffusionPipeline.load_config(folder)
        kind = config.get("_class_name")
        if kind == "WanPipeline":
            raise ValueError("a WanPipeline makes videos: call it in Python, in guided(pipeline, guidance)")
        if kind not in kinds:
            other = "; class_path PipelineSampler samples from it (sd3.yaml)" if kind in LAYOUTS else ""
            raise ValueError(f"it is a {kind}, not a {' or a '.join(kinds)}{other}")
        parts = inspect.signature(getattr(diffusers, kind)).parameters
        without: dict[str, Any] = {
            part: None
            for part, parameter in parts.items()
            if part in UNUSED or (parameter.default is parameter.empty and not any(config.get(part, ())))
        }
        without |= {"requires_safety_checker": False} if "requires_safety_checker" in parts else {}
        without["variant"] = diffusers_format.variant_of(folder)
        with quiet():
            pipeline = getattr(diffusers, kind).from_pretrained(folder, dtype=dtype, **without)
    except Exception as error:  # a foreign folder can fail in any way
        raise unreadable(folder, error) from error
    with quiet():
        for network in pipeline.components.values():
            if isinstance(network, nn.Module):
                network.to(dtype).eval().requires_grad_(False)  # without accelerate some are loaded in fp32
    return pipeline, folder


def unreadable(folder: Path, error: Exception) -> SettingError:
    """The error for a folder with something else."""
    return SettingError(f"{folder} holds no text-to-image model in diffusers' format: {reason(error)}")
