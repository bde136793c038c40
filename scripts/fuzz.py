"""Bad input in one process: settings of every class, command lines, YAML files, and damaged files.

    python scripts/fuzz.py                      # 3,000 settings, overrides and YAML files; 1,000 damaged files
    python scripts/fuzz.py --only files --first 412 --count 1    # one case again

Each case ends well or with a ``SettingError`` in one line of at most 400 characters, and a refused command leaves no
output. Anything else is printed with its traceback, and the exit code is 1. Sockets are disabled, memory is bounded,
and a case that takes longer than ``LIMIT`` seconds counts as a hang.
"""

import argparse
import contextlib
import functools
import inspect
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import types
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_files import damaged, damaged_yaml, readers
from lightning import LightningDataModule

from dng_lightning import callbacks, data, guidance, judges, modules, networks, posterior, pretrained, schedule
from dng_lightning.__main__ import complaint, setting_error
from dng_lightning.__main__ import main as dng
from dng_lightning.cli.parser import Parser
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance
from dng_lightning.modules import GuidedSampler
from dng_lightning.posterior import Posterior
from dng_lightning.storage import resources
from dng_lightning.text_to_image import observers, sampler, vision_language

LIMIT = 120  # seconds of a case
LONGEST = 400  # characters of a complaint
MEMORY = 12 * 2**30  # bytes of address space
SHARES = {"settings": 2200, "commands": 400, "yaml": 400, "files": 1000}  # cases of each kind
NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 10**30, -(10**30), 0.5, -0.5, 1e308, -1e308, 1e38, 1e-320, float("inf"),
    float("nan"), "", "a", "0", "1e3", "null", "é\u0000", "../../x", "/", ".", "x" * 5000, "a: b", "[", [], [[]],
    {}, [1] * 9,
    [None], ["a", 1], {"a": 1}, {"class_path": "os.system"},
    {"class_path": "os.system", "init_args": {"command": "true"}},
    {"class_path": "NoSuchClass"}, {"init_args": {"scale": 1}}, {"class_path": ["Unguided"]}, "Unguided", "UNet",
    "digits", 10**6,
]  # fmt: skip
HOMES = (callbacks, data, guidance, judges, modules, networks, posterior, pretrained, schedule, observers, sampler)
OF_PYTHON = ("PromptJudge", "TextToImageModel", "TextPredictor", "VisionLanguageModel")  # no setting names them
SAMPLE = ["--model.checkpoint=digits", "--model.steps=2", "--data.num_samples=1", "--trainer.accelerator=cpu"]


class Hang(BaseException):
    """A case took too long."""


@functools.cache
def classes() -> list[type]:
    """Every public class with settings."""
    found = {
        value
        for home in (*HOMES, vision_language)
        for value in vars(home).values()
        if inspect.isclass(value) and value.__module__.startswith("dng_lightning")
        if not (inspect.isabstract(value) or issubclass(value, Exception) or value.__name__ in OF_PYTHON)
    }
    return sorted((cls for cls in found if inspect.signature(cls).parameters), key=lambda cls: cls.__qualname__)


def plausible(hint: Any, choice: random.Random) -> Any:
    """A value of a type hint, in or out of its range; of an unknown hint, anything."""
    arguments, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is typing.Literal:
        return choice.choice(arguments)
    if (arguments and origin in (list, tuple)) or str(origin).endswith("Sequence'>"):
        return [plausible(arguments[0], choice) for _ in range(choice.randrange(4))]
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return plausible(choice.choice(arguments), choice)
    simple: dict[Any, list[Any]] = {
        bool: [True, False], int: [0, 1, 2, 3, 8, 100, -1], float: [0.0, 0.1, 0.5, 0.9, 1.0, 2.0, 50.0, -1.0],
        str: ["digits", "0", "a", "", "digits-classifier"], type(None): [None],
    }  # fmt: skip
    if isinstance(hint, type) and hint in simple:
        return choice.choice(simple[hint])
    if hint in (Guidance, Posterior, schedule.NoiseSchedule):
        home = {Guidance: guidance, Posterior: posterior}.get(hint, schedule)
        return {"class_path": f"{home.__name__}.{choice.choice([n for n in dir(home) if n[0].isupper()])}"}
    return choice.choice(NASTY)


def shown(given: Any) -> str:
    """What a case consists of, without the long texts."""
    return str(given).replace("x" * 5000, "xxx...")[:1000]


def settings_case(choice: random.Random) -> Callable[[], None]:
    """Some init arguments of some class; a guidance or posterior also samples."""
    cls = choice.choice(classes())
    hints = {name: parameter.annotation for name, parameter in inspect.signature(cls).parameters.items()}
    with contextlib.suppress(NameError, TypeError):
        hints |= {name: hint for name, hint in typing.get_type_hints(cls.__init__).items() if name in hints}
    given = {
        name: choice.choice(NASTY) if choice.random() < 0.4 else plausible(hint, choice)
        for name, hint in hints.items()
        if choice.random() < max(0.35, 1.5 / len(hints))
    }

    def run() -> None:
        print(cls.__qualname__, shown(given))
        parser = Parser()
        parser.add_class_arguments(cls, "made")
        made = parser.instantiate_classes(parser.parse_object({"made": given})).made
        made = DynamicNegativeGuidance(posterior=made) if isinstance(made, Posterior) else made
        if isinstance(made, Guidance):
            made = GuidedSampler("digits", guidance=made, steps=2, class_labels=choice.choice([None, [1, 2]]))
        if isinstance(made, GuidedSampler) and made.sampler.steps < 20:
            with torch.no_grad():
                images = made.draw([0, 1]).images
            assert images.isfinite().all(), "images that are not finite"
        if isinstance(made, LightningDataModule) and not isinstance(made, data.Seeds):
            made.prepare_data()
            made.setup("fit")

    return run


def command(words: list[str], *configs: Path) -> None:
    """Run a command; where it is refused, nothing may be left."""
    before = set(Path.cwd().rglob("*"))
    try:
        dng([*words, *(f"--config={path}" for path in configs), *SAMPLE])
    except SystemExit as ended:
        left = {path for path in set(Path.cwd().rglob("*")) - before if path.is_file()}
        if ended.code and left:
            raise AssertionError(f"refused, and left {left}") from ended
        raise
    finally:
        for folder in ("samples", "results", "logs", "out"):
            shutil.rmtree(folder, ignore_errors=True)


def setting_names() -> list[str]:
    """The settings of the command line by their dotted names."""
    names: list[str] = []

    def collect(mapping: dict[str, Any], prefix: str) -> None:
        for key, value in mapping.items():
            name = prefix if key in ("init_args", "class_path") else f"{prefix}.{key}".lstrip(".")
            names.append(name)
            if isinstance(value, dict):
                collect(value, name)

    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        dng(["predict", "--print_config"])
    collect(yaml.safe_load(printed.getvalue()), "")
    return sorted({*names} - {"trainer.fast_dev_run", "trainer.limit_predict_batches", "trainer.max_time"})


def commands_case(choice: random.Random) -> Callable[[], None]:
    """One to three overrides of any settings of ``dng predict``, ``test`` or ``fit``."""
    names = choice.choices(NAMES, k=choice.randrange(1, 4))
    values = [choice.choice(NASTY) for _ in names]
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    words = [f"--{name}={text}" for name, text in zip(names, texts, strict=True)]
    start = choice.choices(["predict", "test", "fit"], [8, 1, 1])[0]
    return lambda: (print(start, shown(words)), command([start, *words]))[1]


def yaml_case(choice: random.Random) -> Callable[[], None]:
    """A shipped configuration with a damage, or a file that is none."""
    name = choice.choice(["predict", "negative_prompting", "perp_neg", "self_filter"])
    text = resources.config(name if name in resources.configs() else "predict").read_text()
    content = damaged_yaml(text, json.dumps(choice.choice(NASTY)), choice)

    def run() -> None:
        print("predict --config", repr(content[:1000]))
        Path("case.yaml").write_bytes(content)
        try:
            command(["predict"], Path("case.yaml"))
        finally:
            assert not Path("hacked").exists(), "code in a YAML file ran"

    return run


def files_case(choice: random.Random) -> Callable[[], None]:
    """A damaged file, read by what reads the whole one."""
    path, read = choice.choice(READERS)
    content = damaged(CONTENTS[path], choice, list(CONTENTS.values()))
    case = Path(f"case{path.suffix}")

    def run() -> None:
        print(path.name, len(content), "bytes")
        case.write_bytes(content)
        read(case)

    return run


def problem(run: Callable[[], None]) -> str:
    """What is wrong with a case; empty for nothing."""
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(action="ignore"):
            run()
    except SystemExit as ended:
        lines = [line for line in err.getvalue().splitlines() if line.startswith("dng: error: ")]
        said = "" if ended.code in (0, None) else "\n".join(lines) or "no complaint"
    except Hang:
        return f"{out.getvalue()}hang"
    except Exception as error:
        mendable = setting_error(error)
        said = complaint(mendable) if mendable else traceback.format_exc(limit=-4)
        if mendable is None:
            return f"{out.getvalue()}{said}"
    else:
        said = ""
    finally:
        signal.alarm(0)
    OUTCOMES["refused" if said else "ran"] += 1
    wrong = "no complaint" if said == "no complaint" else "several lines" if "\n" in said else ""
    wrong = wrong or (f"{len(said)} characters" if len(said) > LONGEST else "")
    return f"{out.getvalue()}{wrong}: {said[:500]}" if wrong else ""


@contextlib.contextmanager
def confined() -> Iterator[Path]:
    """An empty working directory, without network and with bounded memory."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("sockets are disabled")

    def hang(*args: Any) -> None:
        raise Hang

    socket.socket.connect = refuse  # type: ignore[method-assign]
    signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    logging.disable(logging.WARNING)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(here)


CASES = {"settings": settings_case, "commands": commands_case, "yaml": yaml_case, "files": files_case}
NAMES: list[str] = []
OUTCOMES: Counter[str] = Counter()
READERS: list[tuple[Path, Callable[[Path], object]]] = []
CONTENTS: dict[Path, bytes] = {}


def run(only: str | None = None, first: int = 0, count: int | None = None) -> int:
    """Run the cases; returns the number of those that went wrong."""
    wrong = 0
    with confined(), tempfile.TemporaryDirectory() as folder:
        NAMES[:], READERS[:] = setting_names(), readers(Path(folder))
        CONTENTS.update({path: path.read_bytes() for path, _ in READERS})
        for kind in [only] if only else CASES:
            bad: Counter[str] = Counter()
            OUTCOMES.clear()
            cases = count if count is not None else SHARES[kind]
            for number in range(first, first + cases):
                if found := problem(CASES[kind](random.Random(f"{kind} {number}"))):
                    bad[found.strip().splitlines()[-1][:160]] += 1
                    print(f"--- {kind} {number}: {found[-3000:]}", flush=True)
            wrong += bad.total()
            print(
                f"{kind}: {cases} cases, {OUTCOMES['refused']} refused, {bad.total()} went wrong",
                *bad.most_common(),
                sep="\n  ",
                flush=True,
            )
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int)
    sys.exit(bool(run(**vars(parser.parse_args()))))
