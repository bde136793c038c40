"""Downloads checkpoints from the Hugging Face hub, or from a release of the package.

A release has a file ``<name>.zip`` for each checkpoint that the wheel does not contain; ``checkpoints/released.json``
has their SHA-256. Downloads are renamed when they are complete.
"""

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import urllib.request
import zipfile
from pathlib import Path
from uuid import uuid4

from filelock import FileLock
from tqdm import tqdm

from dng_lightning.errors import SettingError, reason, require

HUB = "hf:"  # prefix of a name on the hub
RELEASE_URL = "DNG_RELEASE_URL"  # the environment variable that names the folder of a release
TIMEOUT = 30  # seconds without a byte
CHUNK = 2**20
FILES = ("model.safetensors", "model.ckpt", "*.json", "*.yaml", "real-*.pt", "README.md")
WANTED = (*FILES, "*/*.safetensors", "*/*.json", "*/*.txt")


def from_hub(name: str) -> Path:
    """The folder of a checkpoint on the Hugging Face hub, which is downloaded if the cache lacks it.

    Args:
        name: ``hf:owner/model``, or ``hf:owner/model@revision``.

    Raises:
        SettingError: the name is malformed, ``huggingface_hub`` is not installed, or the download fails.
    """
    owner_and_model, _, revision = name.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", owner_and_model):
        raise SettingError(f"{name} is no name on the hub: give {HUB}owner/model, or {HUB}owner/model@revision")
    hub = require("huggingface_hub", name, "hub")
    where = {"revision": revision or None, "endpoint": os.environ.get("HF_ENDPOINT")}
    try:
        return Path(hub.snapshot_download(owner_and_model, allow_patterns=list(WANTED), **where))
    except Exception as error:  # no connection, no such model, a gated one
        why = f"{type(error).__name__}: {reason(error)}"
        raise SettingError(
            f"{name} is not in the cache, and cannot be downloaded from the Hugging Face hub: {why}"
        ) from error


def from_release(name: str, digest: str, cache: Path) -> Path:
    """The folder of a released checkpoint in the cache, which is downloaded if it is missing.

    Args:
        name: name of the checkpoint.
        digest: SHA-256 of its ``.zip``, in hexadecimal digits.
        cache: folder of the cache.

    Raises:
        SettingError: the address of the release is not set, or the download fails or is another file.
    """
    folder = cache / f"{name}-{digest[:12]}" / name  # the last part is the checkpoint's name
    if folder.is_dir():
        return folder
    if not (release := os.environ.get(RELEASE_URL)):
        raise SettingError(
            f"{name} is not part of the installed package: use a checkout of the repository, or set {RELEASE_URL} to "
            f"the address of a release with {name}.zip"
        )
    url, aside = f"{release.rstrip('/')}/{name}.zip", cache / f"{uuid4().hex}.part"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):  # one process downloads, the others wait
            if not folder.is_dir():
                aside.mkdir()
                archive = aside / "archive.zip"
                _fetch(url, archive)
                with archive.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != digest:
                    raise ValueError(f"its SHA-256 is {found[:12]}... instead of {digest[:12]}...")
                with zipfile.ZipFile(archive) as zipped:
                    zipped.extractall(aside / name)
                folder.parent.mkdir(exist_ok=True)
                (aside / name).replace(folder)
    except (OSError, ValueError, zipfile.BadZipFile, http.client.HTTPException) as error:
        raise SettingError(
            f"{name} is not part of the installed package, and {url} cannot be used: {reason(error)}"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            (cache / f"{name}.lock").unlink(missing_ok=True)
            cache.rmdir()  # if it is empty
    return folder


def _fetch(url: str, path: Path) -> None:
    """Download a file with a progress bar.

    Raises:
        OSError: the download fails.
        ValueError: the download is incomplete.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if size and path.stat().st_size != size:
        raise ValueError(f"the download ended after {path.stat().st_size:,} of {size:,} bytes")


def cache_folder() -> Path:
    """The folder of downloaded release checkpoints."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dng_lightning" / "checkpoints"
