"""Whole files of every format, what reads them, and damage to them; for ``fuzz.py``."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dng_lightning import data
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler
from dng_lightning.modules.checkpoint_settings import read_references
from dng_lightning.posterior import CalibratedPosterior
from dng_lightning.storage import resources, safe_checkpoint, weights


def readers(folder: Path) -> list[tuple[Path, Callable[[Path], object]]]:
    """Whole files, and what reads each of them."""
    mnist = resources.checkpoint("mnist").parent
    arrays = np.zeros((20, 8, 8), np.uint8)
    np.savez(folder / "a.npz", images=arrays, labels=np.arange(20) % 2)
    np.save(folder / "a.npy", arrays)
    torch.save({"images": torch.zeros(20, 1, 8, 8), "labels": torch.arange(20) % 2}, folder / "a.pt")
    (folder / "photos" / "cat").mkdir(parents=True)
    Image.fromarray(arrays[0]).save(folder / "photos" / "cat" / "0.png")
    digits = resources.checkpoint("digits")
    safe_checkpoint.write(torch.load(digits, weights_only=True), folder / "model.safetensors")

    def draw(path: Path) -> None:
        method = DynamicNegativeGuidance(posterior=CalibratedPosterior(calibration=str(path)))
        GuidedSampler("digits", guidance=method, steps=2).draw([0])

    def photos(path: Path) -> None:
        shutil.copy(path, folder / "photos" / "cat" / "1.png")
        one = data.ImageFolder(root=str(folder / "photos"), val_size=0)
        one.prepare_data()
        one.setup("fit")
        list(one.train_dataloader())

    def array(path: Path) -> None:
        one = data.Arrays(root=str(path), val_size=2)
        one.prepare_data()
        one.setup("fit")

    return [
        (digits, lambda path: DiffusionModule.load(str(path))),
        (folder / "model.safetensors", lambda path: DiffusionModule.load(str(path))),
        (folder / "model.safetensors", lambda path: weights.state_dict(path)),
        (resources.checkpoint("digits-classifier"), lambda path: ClassifierModule.load(str(path))),
        (mnist / "real-mnist-classifier.pt", lambda path: ReferenceStatistics.load(path)),
        (mnist / "zeros.pt", lambda path: read_references(str(path))),
        (mnist / "calibration.yaml", draw),
        (folder / "a.npz", array), (folder / "a.npy", array), (folder / "a.pt", array),
        (folder / "photos" / "cat" / "0.png", photos),
    ]  # fmt: skip


def damaged(content: bytes, choice: random.Random, others: list[bytes]) -> bytes:
    """The content of a file truncated, with flipped bits, of another file, or with other numbers in its text."""
    kind = choice.randrange(6)
    if kind == 0:
        return content[: choice.randrange(len(content))]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(choice.choice([1, 3, 100])):
            changed[choice.randrange(min(len(changed), choice.choice([100, 4000, len(changed)])))] ^= (
                1 << choice.randrange(8)
            )
        return bytes(changed)
    if kind == 2:  # numbers in headers and text: shapes, offsets, values
        digits = [place for place, byte in enumerate(content[:20000]) if chr(byte).isdigit()] or [0]
        place = choice.choice(digits)
        return (
            content[:place]
            + choice.choice([b"9", b"-1", b"99999999999", b"nan", b"[", b"1e309"])
            + content[place + 1 :]
        )
    if kind == 3:
        return choice.choice(others)
    if kind == 4:
        place = choice.randrange(len(content))
        return content[:place] + choice.randbytes(choice.choice([1, 50, 5000])) + content[place:]
    return choice.choice([b"", b"\0" * 1000, b"PK\x03\x04", b"[1, 2]", b"a: b", choice.randbytes(3000)])


def damaged_yaml(text: str, value: str, choice: random.Random) -> bytes:
    """The text of a configuration with a damage, which may be a ``value``; or a file that is none."""
    lines = text.splitlines()
    place = choice.randrange(len(lines))
    damages: list[Callable[[], bytes]] = [
        lambda: b"\xef\xbb\xbf" + text.encode(), lambda: text.replace("\n", "\r\n").encode(), lambda: b"",
        lambda: text.encode("utf-16"), lambda: choice.randbytes(200), lambda: b"- " + value.encode(),
        lambda: value.encode(),
        lambda: "\n".join([*lines[:place], lines[place], *lines[place:]]).encode(),
        lambda: "\n".join([*lines[:place], *lines[place + 1 :]]).encode(),
        lambda: "\n".join([*lines[:place], lines[place].split(":")[0] + ": " + value, *lines[place + 1 :]]).encode(),
        lambda: "\n".join([*lines[:place], "  " + lines[place], *lines[place + 1 :]]).encode(),
        lambda: text[: choice.randrange(len(text))].encode(), lambda: ("a: &a [*a]\n" + text).encode(),
        lambda: b"a: &a [1,1,1]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 115)),
        lambda: text.replace("class_path", "class_paths", 1).encode(), lambda: ("model: [1]\n" + text).encode(),
        lambda: text.replace("GuidedSampler", choice.choice(["Unguided", "os.system", "1", "UNet"])).encode(),
        lambda: text.replace(":", " :" * choice.randrange(3)).encode(),
        lambda: f"model:\n  model:\n    {value}".encode(),
        lambda: b"trainer: !!python/object/apply:os.system ['touch hacked']",
    ]  # fmt: skip
    return choice.choice(damages)()
