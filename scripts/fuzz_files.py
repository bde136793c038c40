"""Whole files of every format, what reads them, and damage to them; for ``fuzz.py``."""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dng_lightning import data
from dng_lightning.__main__ import main as dng
from dng_lightning.data.table import read_table
from dng_lightning.evaluation import results_file
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.judges import Preprocessing, TorchScriptClassifier
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler
from dng_lightning.modules.checkpoint_settings import read_references
from dng_lightning.posterior import CalibratedPosterior
from dng_lightning.storage import resources, safe_checkpoint, weights
from dng_lightning.text_to_image.prompt_file import read_prompts

Read = Callable[[Path], object]


def readers(folder: Path) -> list[tuple[Path, Read]]:
    """Whole files, and what reads each of them."""
    digits, mnist = resources.checkpoint("digits"), resources.checkpoint("mnist").parent
    safe_checkpoint.write(torch.load(digits, weights_only=True), folder / "model.safetensors")
    return [
        (digits, lambda path: DiffusionModule.load(str(path))),
        (folder / "model.safetensors", lambda path: DiffusionModule.load(str(path))),
        (folder / "model.safetensors", lambda path: weights.state_dict(path)),
        (resources.checkpoint("digits-classifier"), lambda path: ClassifierModule.load(str(path))),
        (mnist / "real-mnist-classifier.pt", lambda path: ReferenceStatistics.load(path)),
        (mnist / "zeros.pt", lambda path: read_references(str(path))),
        (mnist / "calibration.yaml", calibrated),
        (mnist / "calibration.yaml", calibration_of_a_checkpoint),
        *images(folder),
        *tables(folder),
        (torch_script(folder / "judge.pt"), judge),
        *output_folders(folder),
    ]


def calibrated(path: Path) -> None:
    """Sample with a calibration that a setting names."""
    method = DynamicNegativeGuidance(posterior=CalibratedPosterior(calibration=str(path)))
    GuidedSampler("digits", guidance=method, steps=2).draw([0])


def calibration_of_a_checkpoint(path: Path) -> None:
    """Sample with the calibration in the folder of the checkpoint."""
    Path("own").mkdir()
    shutil.copy(path, "own/calibration.yaml")
    shutil.copy(resources.checkpoint("digits"), "own")
    method = DynamicNegativeGuidance(posterior=CalibratedPosterior())
    GuidedSampler("own", guidance=method, steps=2).draw([0])


def images(folder: Path) -> list[tuple[Path, Read]]:
    """Files of images, and arrays."""
    arrays = np.zeros((20, 8, 8), np.uint8)
    np.savez(folder / "a.npz", images=arrays, labels=np.arange(20) % 2)
    np.save(folder / "a.npy", arrays)
    torch.save({"images": torch.zeros(20, 1, 8, 8), "labels": torch.arange(20) % 2}, folder / "a.pt")
    cats = folder / "photos" / "cat"
    cats.mkdir(parents=True)
    for name in ("0.png", "0.jpg", "0.gif"):
        Image.fromarray(arrays[0]).save(cats / name)

    def photos(path: Path) -> None:
        shutil.copytree(folder / "photos", "photos")
        shutil.copy(path, f"photos/cat/1{path.suffix}")
        one = data.ImageFolder(root="photos", val_size=0)
        one.prepare_data()
        one.setup("fit")
        list(one.train_dataloader())

    def array(path: Path) -> None:
        one = data.Arrays(root=str(path), val_size=2)
        one.prepare_data()
        one.setup("fit")

    files = [(path, photos) for path in sorted(cats.iterdir())]
    return [*files, *((folder / name, array) for name in ("a.npz", "a.npy", "a.pt"))]


def tables(folder: Path) -> list[tuple[Path, Read]]:
    """Prompts, tables of images, and results, which are text."""
    (folder / "prompts.csv").write_text(
        'prompt,negative_prompt,seed\na cat,"[""a dog"", ""hay""]",3\na cow,"[""a"",""b""]",4\n'
    )
    (folder / "prompts.jsonl").write_text(
        '{"prompt": "a cat", "negative_prompt": "a dog", "seed": 3}\n{"prompt": "é"}\n'
    )
    (folder / "table.csv").write_text("file,label,caption\n0.png,cat,a cat\n1.png,dog,a dog\n")
    (folder / "table.jsonl").write_text('{"file": "0.png", "label": 1}\n{"file": "1.png", "label": 2}\n')
    read: list[tuple[str, Read]] = [
        ("prompts.csv", read_prompts), ("prompts.jsonl", read_prompts),
        ("table.csv", read_table), ("table.jsonl", read_table), ("table.csv", results_file.read),
    ]  # fmt: skip
    return [(folder / name, reader) for name, reader in read]


def torch_script(path: Path) -> Path:
    """A tiny classifier of two classes."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 1, 8, 8)), path)
    return path


def judge(path: Path) -> None:
    """Load a TorchScript classifier."""
    TorchScriptClassifier(str(path), ["cat", "dog"], Preprocessing(mean=[0], std=[1], size=8, channels=1))


def output_folders(folder: Path) -> list[tuple[Path, Read]]:
    """Files in the output folder of each command, and the command once more."""
    own = ["--model.checkpoint=digits", "--model.classifier=digits-classifier", "--model.steps=2"]
    tested = ["--data.num_samples=12", "--model.guidances=[Unguided]", "--data.reference_data=Digits"]
    fitted = ["--config=digits.yaml", "--model.net.channels=[8]", "--trainer.max_steps=2"]
    fitted += ["--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"]
    made = {
        "predict": (
            [*own, "--data.num_samples=2"],
            ["config.yaml", "inputs.json", "records/00000000.json", "00000000.png"],
        ),
        "test": ([*own, *tested], ["config.yaml", "inputs.json", "results.csv"]),
        "fit": (fitted, ["config.yaml", "checkpoints/last.ckpt"]),
    }
    found: list[tuple[Path, Read]] = []
    for command, (settings, names) in made.items():
        words = [command, *settings, "--trainer.accelerator=cpu"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            dng([*words, f"--trainer.default_root_dir={folder / command}"])
        found += [(folder / command / name, again(words, folder / command, name)) for name in names]
    return found


def again(words: Sequence[str], made: Path, name: str) -> Read:
    """What runs a command in a copy of its output folder, with another file in the place of one of it."""

    def run(path: Path) -> None:
        shutil.copytree(made, "out")
        shutil.copy(path, f"out/{name}")
        resume = ["--ckpt_path=last", "--trainer.max_steps=3"] if words[0] == "fit" else []
        dng([*words, *resume, "--trainer.default_root_dir=out"])

    return run


def damaged(content: bytes, choice: random.Random, others: list[bytes]) -> bytes:
    """The content of a file truncated, with flipped bits, of another file, or with other numbers in its text."""
    kind = choice.randrange(7)
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
    if kind == 5:  # of text a line twice, without a line, or with other values
        lines = content.split(b"\n")
        place = choice.randrange(len(lines))
        value = json.dumps(choice.choice([None, -1, 1e308, "é", [], {}, [[]], "x" * 5000])).encode()
        key, mark, _ = lines[place].partition(choice.choice([b": ", b","]))
        changed_lines = [[], [lines[place]] * 2, [key + mark + value]]
        return b"\n".join([*lines[:place], *choice.choice(changed_lines), *lines[place + 1 :]])
    return choice.choice([b"", b"\0" * 1000, b"PK\x03\x04", b"[1, 2]", b"a: b", b"{}", choice.randbytes(3000)])


def damaged_yaml(text: str, value: str, choice: random.Random) -> bytes:
    """The text of a configuration with a damage, which may be a ``value``; or a file that is none."""
    lines = text.splitlines()
    place = choice.randrange(len(lines))
    before, after = lines[:place], lines[place + 1 :]
    of_lines: list[Callable[[], str]] = [
        lambda: "\n".join([*before, lines[place], *lines[place:]]),
        lambda: "\n".join([*before, *after]),
        lambda: "\n".join([*before, lines[place].split(":")[0] + ": " + value, *after]),
        lambda: "\n".join([*before, "  " + lines[place], *after]),
        lambda: "\n".join([*before, lines[place].removeprefix("  "), *after]),
        lambda: "\n".join([*before, lines[place], "# " + value, *after]),
    ]
    if choice.random() < 0.5:
        return choice.choice(of_lines)().encode()
    of_files: list[Callable[[], bytes]] = [
        lambda: b"\xef\xbb\xbf" + text.encode(), lambda: text.replace("\n", "\r\n").encode(), lambda: b"",
        lambda: text.encode("utf-16"), lambda: choice.randbytes(200), lambda: b"- " + value.encode(),
        lambda: value.encode(),
        lambda: text[: choice.randrange(len(text))].encode(), lambda: ("a: &a [*a]\n" + text).encode(),
        lambda: b"a: &a [1,1,1]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 115)),
        lambda: text.replace("class_path", "class_paths", 1).encode(), lambda: ("model: [1]\n" + text).encode(),
        lambda: text.replace("GuidedSampler", choice.choice(["Unguided", "os.system", "1", "UNet"])).encode(),
        lambda: text.replace(":", " :" * choice.randrange(3)).encode(),
        lambda: f"model:\n  model:\n    {value}".encode(),
        lambda: b"trainer: !!python/object/apply:os.system ['touch hacked']",
    ]  # fmt: skip
    return choice.choice(of_files)()
