"""The cases of ``fuzz.py``, each made of its number alone; an ``AssertionError`` in one is a finding."""

import contextlib
import csv
import functools
import inspect
import io
import json
import random
import tempfile
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_files import damaged, damaged_yaml, readers
from lightning import LightningDataModule

from dng_lightning import callbacks, data, guidance, judges, modules, networks, posterior, pretrained, schedule
from dng_lightning.__main__ import main as dng
from dng_lightning.cli.parser import Parser
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance
from dng_lightning.modules import GuidedSampler
from dng_lightning.posterior import Posterior
from dng_lightning.storage import resources
from dng_lightning.text_to_image import observers, sampler, vision_language

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 10**30, -(10**30), 0.5, -0.5, 1e308, -1e308, 1e38, 1e-320, float("inf"),
    float("nan"), "", "a", "0", "1e3", "null", "é\u0000", "../../x", "/", ".", "x" * 5000, "a: b", "[", [], [[]],
    {}, [1] * 9,
    [None], ["a", 1], {"a": 1}, {"class_path": "os.system"},
    {"class_path": "os.system", "init_args": {"command": "true"}},
    {"class_path": "NoSuchClass"}, {"init_args": {"scale": 1}}, {"class_path": ["Unguided"]}, "Unguided", "UNet",
    "digits", 10**6,
]  # fmt: skip
LARGE = (10**6, 10**30, float("inf"))
HOMES = (callbacks, data, guidance, judges, modules, networks, posterior, pretrained, schedule, observers, sampler)
OF_PYTHON = ("Judge", "PromptJudge", "TextToImageModel", "TextPredictor")  # not in settings
CPU = ["--trainer.accelerator=cpu"]
SAMPLER = ["--model.checkpoint=digits", "--model.classifier=digits-classifier", "--model.steps=2", *CPU]
TEST = ["--data.num_samples=12", "--model.guidances=[DynamicNegativeGuidance]", "--data.reference_data=Digits"]
FIT = ["--config=digits.yaml", "--model.net.channels=[8]", "--trainer.max_steps=2", "--trainer.limit_val_batches=1"]
START = {  # what makes a command run in no time; the settings of a case follow
    "predict": [*SAMPLER, "--data.num_samples=2"],
    "test": [*SAMPLER, *TEST],
    "fit": [*FIT, "--trainer.enable_progress_bar=false", *CPU],
}
LASTING = ("num_samples", "max_steps", "max_epochs", "min_steps", "min_epochs")  # large values only last long
PROCESSES = ("trainer.devices", "trainer.num_nodes")  # several would wait for each other in this process
UNTRIED = ("trainer.fast_dev_run", "trainer.limit_predict_batches", "trainer.max_time")


# --- settings of classes ---


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


def hints_of(cls: type) -> dict[str, Any]:
    """The types of a class's settings."""
    hints = {name: parameter.annotation for name, parameter in inspect.signature(cls).parameters.items()}
    with contextlib.suppress(NameError, TypeError):
        hints |= {name: hint for name, hint in typing.get_type_hints(cls.__init__).items() if name in hints}
    return hints


def shown(given: Any) -> str:
    """What a case consists of, without the long texts."""
    return str(given).replace("x" * 5000, "xxx...")[:1000]


def settings_case(choice: random.Random) -> Callable[[], None]:
    """Some init arguments of some class; a guidance or posterior also samples."""
    cls, nasty = choice.choice(classes()), choice.choice([0.0, 0.1, 0.4])
    hints = hints_of(cls)
    given = {
        name: choice.choice(NASTY) if choice.random() < nasty else plausible(hint, choice)
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


# --- command lines ---


def command(words: Sequence[str], overrides: dict[str, str] | None = None) -> None:
    """Run a command: refused, it leaves nothing; else its output is whole, and its config.yaml has the overrides."""
    try:
        dng([*words, *(f"--{name}={text}" for name, text in (overrides or {}).items())])
        for name, text in (overrides or {}).items():
            check_saved(name, text)
        for labels in Path.cwd().rglob("labels.csv"):
            with labels.open(newline="") as file:
                rows = list(csv.DictReader(file))
            there = sorted(path.name for path in labels.parent.glob("[0-9]*.png"))
            assert [row["file"] for row in rows] == there, f"partial output: {len(rows)} rows, {len(there)} images"
            assert (labels.parent / "grid.png").exists(), "partial output: no grid.png"
    except SystemExit as ended:
        left = [path for path in Path.cwd().rglob("*") if path.is_file() and path.name != "case.yaml"]
        if ended.code and left:
            raise AssertionError(f"refused, and left {left[:3]}") from ended
        raise


def check_saved(name: str, text: str) -> None:
    """Check that a run's config.yaml has a setting's value, and no other in its place."""
    config = next(Path.cwd().rglob("config.yaml"), None)
    found = yaml.safe_load(config.read_text()) if config else None
    for part in name.split("."):
        found = found.get("init_args", found) if isinstance(found, dict) else None
        found = found.get(part) if isinstance(found, dict) else None
    with contextlib.suppress(yaml.YAMLError):
        given = yaml.safe_load(text)
        if isinstance(given, str):  # YAML takes 1e3 for a text
            with contextlib.suppress(ValueError):
                given = float(given)
        is_same = found == given or str(found) == text or str(found) == str(given)
        if config and given is not None and not isinstance(given, dict | list | str) and not is_same:
            raise AssertionError(f"silent fallback: {name}={text} was saved as {found!r}")


@functools.cache
def settings_of(start: str) -> dict[str, Any]:
    """The settings of a command by their dotted names, with their defaults."""
    found: dict[str, Any] = {}

    def collect(mapping: dict[str, Any], prefix: str) -> None:
        for key, value in mapping.items():
            name = prefix if key in ("init_args", "class_path") else f"{prefix}.{key}".lstrip(".")
            found.setdefault(name, value)
            if isinstance(value, dict):
                collect(value, name)

    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        dng([start, *START[start], "--print_config"])
    collect(yaml.safe_load(printed.getvalue()), "")
    return {name: found[name] for name in sorted(found) if name not in UNTRIED}


def near(default: Any, choice: random.Random) -> Any:
    """A value of the default's type."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return choice.choice([0, 1, 2, 0.5, -1, 2 * default, default + 1])
    if isinstance(default, list):
        return choice.choice([[], default[:1], 2 * default])
    return choice.choice(["auto", "0", "digits", "1"]) if isinstance(default, str) else choice.choice(NASTY)


def commands_case(choice: random.Random) -> Callable[[], None]:
    """One to three overrides of any settings of ``dng predict``, ``test`` or ``fit``, near their defaults or not."""
    start = choice.choices(["predict", "test", "fit"], [3, 1, 1])[0]
    defaults, values = settings_of(start), dict[str, Any]()
    if start == "predict" and choice.random() < 0.4:
        method = choice.choice([cls for cls in classes() if issubclass(cls, Guidance)])
        values["model.guidance"] = method.__name__
        values |= {
            f"model.guidance.{name}": plausible(hint, choice)
            for name, hint in hints_of(method).items()
            if choice.random() < 0.5
        }
    else:
        for name in choice.choices(list(defaults), k=choice.randrange(1, 4)):
            values[name] = choice.choice(NASTY) if choice.random() < 0.5 else near(defaults[name], choice)
    values = {
        name: 1 if name.endswith(LASTING) and value in LARGE else "x" if "root_dir" in name and value == "/" else value
        for name, value in values.items()
        if not (name in PROCESSES and isinstance(value, int) and value > 1)
    }
    overrides = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return lambda: (print(start, shown(overrides)), command([start, *START[start]], overrides))[1]


def yaml_case(choice: random.Random) -> Callable[[], None]:
    """A shipped configuration with a damage, or a file that is none."""
    name = choice.choice(["predict", "negative_prompting", "perp_neg", "self_filter", "digits", "classifier_free"])
    start = "fit" if name == "digits" else "predict"
    content = damaged_yaml(resources.config(name).read_text(), json.dumps(choice.choice(NASTY)), choice)

    def run() -> None:
        print(start, "--config", repr(content[:1000]))
        Path("case.yaml").write_bytes(content)
        settings = [word for word in START[start] if not word.startswith("--config")]
        command([start, "--config=case.yaml", *settings])
        assert not list(Path.cwd().rglob("hacked")), "code in a YAML file ran"

    return run


# --- files ---


@functools.cache
def whole_files() -> list[tuple[Path, Callable[[Path], object], bytes]]:
    """Whole files, what reads each of them, and their contents."""
    return [(path, read, path.read_bytes()) for path, read in readers(Path(tempfile.mkdtemp()))]


def files_case(choice: random.Random) -> Callable[[], None]:
    """A damaged file, read by what reads the whole one."""
    path, read, whole = choice.choice(whole_files())
    content = damaged(whole, choice, [other for _, _, other in whole_files()])
    case = Path(f"case{path.suffix}")

    def run() -> None:
        print(path.name, len(content), "bytes")
        case.write_bytes(content)
        read(case)

    return run


MAKERS = {"settings": settings_case, "commands": commands_case, "yaml": yaml_case, "files": files_case}
