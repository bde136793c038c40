"""Images decoded once into one uint8 array: in memory or, if it is too large, in a memory-mapped file.

The file is a ``.npy`` named by a hash of the images and the settings; it is written under a temporary name and then
renamed, so that it is never incomplete.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dng_lightning.data.decode import decode, is_grey, upright_size
from dng_lightning.data.pixels import from_pillow
from dng_lightning.data.resize import Fit, Size, fitted
from dng_lightning.errors import SettingError, reason
from dng_lightning.storage.files import write_whole
from dng_lightning.storage.mapped_array import mapped_array

MEMORY_SHARE = 0.25  # of the machine's memory, above which decoded images are kept in a file
LISTED = 50  # most unreadable files that an error names
MANY = 5000  # images from which reading the headers takes longer than reading a file that lists them
VERSION = 1  # of what the files contain; part of their names

T = TypeVar("T")
Unreadable = dict[int, str]  # reason by index


@dataclass(frozen=True)
class Items:
    """Images that are decoded one by one.

    Attributes:
        open: returns the image at an index, decoded or not.
        names: names of the images, for messages.
        stamp: identifies the images and their version.
    """

    open: Callable[[int], Image.Image]
    names: Sequence[str]
    stamp: str


def look(items: Items, folder: Path) -> tuple[set[Size], int]:
    """The sizes and the number of channels of images, from their headers; unreadable images are left out.

    Those of ``MANY`` images or more are kept in a file, and read from there the next time.

    Args:
        items: N images.
        folder: folder of the file; if it cannot be written, the headers are read each time.

    Returns:
        pairs of height and width; 1 if all images are grey, else 3.
    """

    def header(place: int) -> tuple[Size, bool] | None:
        try:
            with items.open(place) as image:
                return upright_size(image), is_grey(image)
        except Exception:  # a damaged file can fail in any way, and `stored` reports it
            return None

    path = folder / f"{_key(items.stamp)}.headers.json"
    with contextlib.suppress(OSError, ValueError):
        sizes, channels = json.loads(path.read_text())
        return {(height, width) for height, width in sizes}, channels
    found = {seen for seen in _in_threads(header, items, "looking at images") if seen}
    sizes, channels = {size for size, _ in found}, 1 if all(grey for _, grey in found) else 3
    if len(items.names) >= MANY:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps([sorted(sizes), channels]).encode())
    return sizes, channels


def stored(
    items: Items, shape: tuple[int, int, int], fit: Fit, folder: Path, share: float
) -> tuple[Tensor, Unreadable]:
    """Decode images, or map the file of an earlier run.

    Args:
        items: N images.
        shape: (C, H, W) of each decoded image.
        fit: see ``fitted``.
        folder: folder of the file.
        share: share of the machine's memory above which the images are kept in a file, in [0, 1].

    Returns:
        uint8 (N, C, H, W), and the images that cannot be decoded.

    Raises:
        SettingError: the file cannot be written or read.
    """
    whole = (len(items.names), *shape)
    size = math.prod(whole)
    if size <= share * _memory():
        array = np.zeros(whole, np.uint8)
        return torch.from_numpy(array), _fill(array, items, fit)
    key = _key(f"{whole} {fit} {items.stamp}")
    path, notes = folder / f"{key}.npy", folder / f"{key}.json"
    try:
        if not path.exists():
            rank_zero_info(f"{len(items.names):,} images take {size / 2**30:.3g} GiB: kept in {path}")
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"{key}.{uuid4().hex[:8]}.part"  # several nodes may write at once
            try:
                array = mapped_array(part, np.dtype(np.uint8), whole)
                unreadable = _fill(array, items, fit)
                array.flush()
                write_whole(notes, json.dumps(unreadable).encode())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        mapped = np.load(path, mmap_mode="c")  # copy on write: torch wants a writable array
        return torch.from_numpy(mapped), {int(place): why for place, why in json.loads(notes.read_text()).items()}
    except OSError as error:
        raise SettingError(f"{path} cannot be used ({reason(error)}): name another folder with data.cache") from error


def check_readable(items: Items, unreadable: Unreadable, skip: bool) -> None:
    """Refuse unreadable images, all of them in one error, or report which are skipped.

    Raises:
        SettingError: some images are unreadable and `skip` is false, or all are.
    """
    if not unreadable:
        return
    named = [f"{items.names[place]} ({why})" for place, why in unreadable.items()]
    more = f", and {len(named) - LISTED:,} more" if len(named) > LISTED else ""
    said = f"{len(named):,} of {len(items.names):,} images cannot be read: {', '.join(named[:LISTED])}{more}"
    if not skip or len(named) == len(items.names):
        raise SettingError(f"{said}. Mend or remove them, or go on without them: data.skip_unreadable true")
    rank_zero_info(f"{said}. They are skipped.")


def _fill(array: np.ndarray[Any, Any], items: Items, fit: Fit) -> Unreadable:
    channels, *size = array.shape[1:]
    unreadable: Unreadable = {}

    def fill(place: int) -> None:
        try:
            with items.open(place) as image:
                array[place] = from_pillow(fitted(decode(image, channels), (size[0], size[1]), fit)).numpy()
        except Exception as error:  # a damaged file can fail in any way
            unreadable[place] = reason(error)

    for _ in _in_threads(fill, items, "decoding images"):
        pass
    return dict(sorted(unreadable.items()))


def _in_threads(work: Callable[[int], T], items: Items, what: str) -> Iterator[T]:
    """The results of ``work`` on all indices, from threads; Pillow decodes without the interpreter's lock."""
    with ThreadPool() as pool:
        done = pool.imap(work, range(len(items.names)), chunksize=16)
        hidden = None if getattr(rank_zero_only, "rank", 0) == 0 else True  # None: hidden without a terminal
        yield from tqdm(done, what, len(items.names), leave=False, unit=" images", disable=hidden)


def _key(content: str) -> str:
    """The name of a file, by what it contains."""
    return hashlib.sha256(f"{VERSION} {content}".encode()).hexdigest()[:24]


def _memory() -> int:
    """Memory of the machine in bytes; 8 GiB if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows
        return 8 * 2**30
