"""Finds the package's own files: the YAML files of `configs`, the networks and reference images of `checkpoints`.

Both folders are inside the package in a wheel, and next to it in a checkout or an editable install.
"""

import contextlib
import json
from difflib import get_close_matches
from pathlib import Path

from dng_lightning.errors import SettingError
from dng_lightning.storage import download

PACKAGE = Path(__file__).resolve().parents[1]
# The folder of a checkpoint has one of these; the last one is of diffusers' format.
MODELS = ("model.ckpt", "model.safetensors", "model_index.json")


def config(name: str | Path) -> Path:
    """Finds a config.

    Args:
        name: A path to a YAML file, or the name of a shipped one or of one in `configs` here, with or without its
            folder: `mnist`, `mnist.yaml`, `train/mnist.yaml`. An existing path takes precedence, then a shipped one.

    Returns:
        The path of the file.

    Raises:
        SettingError: There is no such file and no such name.
    """
    names = (Path(name), Path(f"{name}.yaml"))
    files = [*_config_files(), *Path("configs").rglob("*.yaml")]  # the latter: examples that a wheel lacks
    shipped = [path for path in files if any(str(path).endswith(f"/{own}") for own in names)]
    return _find("config", name, [Path(name)], shipped, configs())


def checkpoint(name: str | Path) -> Path:
    """Finds a checkpoint.

    Args:
        name: A path to a `.ckpt` file, to a folder that holds a `model.ckpt` or to one in diffusers' format (with a
            `model_index.json`), or the bare name of a folder in `checkpoints` here or of a shipped one: `mnist`. Local
            files take precedence. A checkpoint that the wheel does not contain is downloaded from its release, and
            `hf:owner/model` from the Hugging Face hub, once.

    Returns:
        The path of the file.

    Raises:
        SettingError: There is no such file and no such name, or the download fails.
    """
    if str(name).startswith(download.HUB):
        return _inside(download.from_hub(str(name)), name)
    local = [Path(name), *(Path(folder, name, file) for folder in ("", "checkpoints") for file in MODELS)]
    shipped = [_folder("checkpoints") / name / file for file in MODELS]
    digest = _released().get(str(name))
    if digest and not any(path.is_file() for path in [*local, *shipped]):
        return _inside(download.from_release(str(name), digest, download.cache_folder()), name)
    return _find("checkpoint", name, local, shipped, checkpoints())


def name_of(name: str | Path) -> str:
    """The name of a checkpoint: that of its folder, or of the file for a `.ckpt` with another name."""
    path = Path(str(name).partition("@")[0] if str(name).startswith(download.HUB) else name).absolute()
    return path.parent.name if path.name in MODELS else path.stem if path.suffix == ".ckpt" else path.name


def classifier_of(name: str | Path) -> str | None:
    """The classifier of a checkpoint, ``<checkpoint>-classifier``; None if there is none."""
    path = Path(name)
    folder = path.parent if path.name in MODELS else path.with_suffix("") if path.suffix == ".ckpt" else path
    for own in dict.fromkeys([f"{folder}-classifier", f"{name_of(name)}-classifier"]):
        with contextlib.suppress(SettingError):
            return own if checkpoint(own) else None
    return None


def ships(path: Path) -> bool:
    """Whether a file belongs to the package, so that users must not change it."""
    return path.resolve().is_relative_to(_folder("checkpoints").resolve())


def references(name: str | Path) -> Path:
    """Finds reference images.

    Args:
        name: A path to a `.pt` file or a folder, or a path inside `checkpoints`, here or shipped: `mnist/zeros.pt`.

    Returns:
        The path of the file or folder.

    Raises:
        SettingError: There is no such file and no such folder.
    """
    for path in (Path(name), Path("checkpoints", name), _folder("checkpoints") / name):
        if str(name) and path.exists():
            return path
    raise SettingError(f"references {str(name)!r}: no such .pt file and no such folder, at {Path(name).absolute()}")


def configs() -> list[str]:
    """The names of the shipped configs, sorted; they are unique over all folders."""
    return sorted(path.stem for path in _config_files())


def checkpoints() -> list[str]:
    """The names of the shipped checkpoints and of those of the release, sorted."""
    shipped = {path.parent.name for file in MODELS for path in _folder("checkpoints").glob(f"*/{file}")}
    return sorted(shipped | {*_released()})


def _released() -> dict[str, str]:
    """SHA-256 of the archives of the checkpoints that the wheel does not contain, by name."""
    path = _folder("checkpoints") / "released.json"
    digests: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return digests


def _inside(folder: Path, name: str | Path) -> Path:
    """The file of a checkpoint in a downloaded folder."""
    for file in ("model.safetensors", *MODELS):
        if (folder / file).is_file():
            return folder / file
    raise SettingError(f"{name} holds no checkpoint: none of {', '.join(MODELS)}")


def _config_files() -> list[Path]:
    return list(_folder("configs").rglob("*.yaml"))


def _folder(kind: str) -> Path:
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def _find(what: str, name: str | Path, local: list[Path], shipped: list[Path], names: list[str]) -> Path:
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    for path in local + (shipped if is_inside else []):
        if path.is_file():
            return path
    if what == "checkpoint" and Path(name).name.strip(".") and Path(name).is_dir():  # "" and ".." name no folder
        held = ", ".join(sorted(path.name for path in Path(name).iterdir())[:5]) or "nothing"
        raise SettingError(
            f"folder {name} holds no {' or '.join(MODELS)} but {held}: name a file in it, or a network of diffusers "
            "alone by class_path DiffusersModel (docs/how-to/your-model.md)"
        )
    nearest = get_close_matches(Path(name).stem, names, n=3, cutoff=0.3) or names[:3]
    raise SettingError(
        f"No {what} {str(name)!r}: not at {Path(name).absolute()}, nor among the {len(names)} in {_folder(f'{what}s')}"
        + (f". The nearest: {', '.join(nearest)}" if nearest else "")
    )
