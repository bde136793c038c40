"""Small configurations that go on top of another one."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import EVERY, OVERLAYS, Dng, command_of, its_models, printed_configuration


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


@pytest.mark.parametrize("name", [name for name, parts in OVERLAYS.items() if command_of(parts[0]) == "test"])
def test_every_overlay_of_a_comparison_runs(name: str, dng: Dng, in_place: Path, request: pytest.FixtureRequest):
    worded, folder = name.startswith("captioned"), Path("compared", name)
    its_models(name, request)
    method = "CFGNegativePrompt" if worded else "NegativePrompting"
    settings = [
        "--data.num_samples=4",
        "--model.steps=2",
        "--model.compile=false",
        f"--trainer.default_root_dir={folder}",
    ]
    settings += [f"--model.guidances=[{{class_path: {method}, init_args: {{scale: 3.0}}}}]"]
    settings += ["--data.reference_data.val_size=20"] if worded or name.startswith("portraits") else []
    if name.startswith("portraits"):
        settings += ["--data.reference_data.train_size=64", "--data.reference_data.test_size=8"]
    if name.endswith("unrelated"):
        settings += ["--trainer.callbacks.features=null"]  # hardly one of the fake pictures is a red seven
    dng("test", *(f"--config={part}" for part in OVERLAYS[name]), *settings)
    rows = list(csv.DictReader((folder / "results.csv").open(newline="")))
    assert [row["method"] for row in rows if row["method"] != "Rejection"] == ["Unguided", method]
    for row in rows:
        assert sum(map(int, row["class_counts"].split())) == int(row["n"])
        if worded:
            assert (
                0
                <= float(row["prompt_accuracy_low"])
                <= float(row["prompt_accuracy"])
                <= float(row["prompt_accuracy_high"])
                <= 1
            )
