"""Every shipped configuration parses, and says what it should."""

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import (
    CONFIGS,
    EVERY,
    OVERLAYS,
    command_of,
    printed,
    printed_configuration,
)

from dng_lightning.storage import resources

ROOT = Path(__file__).resolve().parents[3]


# --- shipped configurations ---


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_printed_and_read_back_unchanged(name: str, tmp_path: Path, capsys):
    settings, given = yaml.safe_load(printed_configuration(name)), CONFIGS[name]
    if guidances := settings["model"]["init_args"].get("guidances"):  # one of each class, as each takes .1 s
        settings["model"]["init_args"]["guidances"] = list({used["class_path"]: used for used in guidances}.values())
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(settings))
    again = printed(capsys, command_of(name), "--config", str(tmp_path / "again.yaml"), "--print_config")
    assert yaml.safe_load(again) == settings
    for setting, value in given["model"].get("init_args", {}).items():
        if not isinstance(value, dict | list) and setting != "guidance":
            assert settings["model"]["init_args"][setting] == value


# Of each prompt: temperature, offset and scale, from the paper's table 3 as others quote it.
PAPER = {
    "medieval_feast": (0.2, 0.004, 27),
    "dinner_table": (0.3, 0.003, 12),
    "art_workshop": (0.2, 0.002, 27),
    "antique_store": (0.2, 0.004, 21),
    "english_breakfast": (0.3, 0.003, 18),
}


def test_the_prompts_are_the_papers():
    assert {name for name in CONFIGS if resources.config(name).parent.name == "prompts"} == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_each_prompt_has_something_to_avoid_that_belongs_there_and_something_that_does_not(
    name: str, tmp_path: Path, monkeypatch, capsys
):
    commands = re.findall(r"#   dng (.+)", resources.config(name).read_text())
    monkeypatch.chdir(tmp_path)  # it is found from anywhere
    one, other = (yaml.safe_load(printed(capsys, *shlex.split(line), "--print_config"))["model"] for line in commands)
    assert one["init_args"].pop("negative_prompt") != other["init_args"].pop("negative_prompt")
    assert one == other
    dynamic = one["init_args"]["guidance"]["init_args"]["guidance"]["init_args"]
    posterior = dynamic["posterior"]["init_args"]
    assert (posterior["temperature"], posterior["offset"], dynamic["scale"]) == PAPER[name]
    assert (posterior["prior"], posterior["offset_inside"]) == (0.01, True)


def test_what_the_defaults_need_travels_in_the_wheel():
    """Bare `dng predict`, `dng test` and `dng fit` work from an installed wheel, which leaves out some checkpoints."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {"configs", "checkpoints", "dng_lightning"} <= set(wheel["only-include"])
    kept = [pattern.strip("!/").removeprefix("checkpoints/") for pattern in wheel["exclude"] if pattern[0] == "!"]
    needed = set()
    for name in ("predict", "test", "digits"):
        model, callbacks = CONFIGS[name]["model"]["init_args"], CONFIGS[name]["trainer"]["callbacks"]
        places = [model, *(callback.get("init_args", {}) for callback in callbacks)]
        named = {place[key] for place in places for key in ("checkpoint", "classifier") if place.get(key)}
        needed |= {str(resources.classifier_of(model["checkpoint"])) if name == "auto" else name for name in named}
    assert needed >= {"mnist", "mnist-classifier", "digits-classifier"}
    assert not [name for name in needed if not any(fnmatch.fnmatch(name, pattern) for pattern in kept)]
    there = [resources.checkpoint(name) for name in needed if name in resources.checkpoints()]
    assert (resources.checkpoint("mnist").parent / "real-mnist-classifier.pt").exists()  # what `dng test` compares with
    assert sum(path.stat().st_size for path in there) < 15e6


def laid_over(base: dict[str, Any], top: dict[str, Any], printed: dict[str, Any]) -> dict[str, Any]:
    """The settings of both, those of the second first; the classes are those of the first, lists of them as printed."""
    inside = {}
    for k, v in top.items():
        if isinstance(v, dict) and isinstance(base[k], dict):
            inside[k] = laid_over(base[k], v, printed[k])
        else:
            inside[k] = printed[k] if isinstance(v, list) and are_set(v, printed[k]) else v
    return base | inside | {name: base[name] for name in ("class_path",) if name in base}


def are_set(given: Any, printed: Any) -> bool:
    """Whether the printed settings are the given ones, and what is usual besides."""
    if isinstance(given, dict):
        return all(name in printed and are_set(value, printed[name]) for name, value in given.items())
    if isinstance(given, list):
        return len(given) == len(printed) and all(map(are_set, given, printed))
    return given == printed or (isinstance(printed, str) and printed.endswith(f".{given}"))


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_goes_where_it_says(name: str):
    *below, last = OVERLAYS[name]
    assert last == name
    given = EVERY[name]
    base, top = (yaml.safe_load(printed_configuration(*parts)) for parts in (below, [*below, last]))
    assert top["trainer"]["default_root_dir"] != base["trainer"]["default_root_dir"]
    for part in ("data", "model", "trainer"):
        assert top[part] == laid_over(base[part], given.get(part, {}), top[part])
