"""Every shipped configuration runs."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import (
    CONFIGS,
    IN_WORDS,
    OVERLAYS,
    QUIET,
    Dng,
    Fitted,
    command_of,
    configs_for,
    fit_settings,
    given_for,
    its_models,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dng_lightning.__main__ import run
from dng_lightning.storage import resources


@pytest.mark.parametrize("name", configs_for("fit"))
def test_every_training_runs(name: str, fitted: Fitted):
    if name in IN_WORDS:
        pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")
    if name == "portraits":
        pytest.importorskip("dicebear", reason="dicebear is not installed (extra portraits)")
    folder = fitted(name)
    written = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.json", "checkpoints"} <= written
    assert ("model_index.json" if name in ("captioned_digits", "portraits") else "model.ckpt") in written
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"].endswith("Module")
    assert json.loads((folder / "metrics.json").read_text())["val/loss"] > 0
    board = EventAccumulator(str(folder))
    board.Reload()
    assert "train/loss" in board.Tags()["scalars"] or "val/loss" in board.Tags()["scalars"]
    samplers = [c for c in CONFIGS[name]["trainer"]["callbacks"] if c["class_path"] == "GuidedSampling"]
    assert ("samples/unguided" in board.Tags()["images"]) == bool(samplers)


def assert_used(given: str | dict[str, Any], used: dict[str, Any]) -> None:
    """A guidance was made as it was given, and those inside it too."""
    method, settings = (given, {}) if isinstance(given, str) else (given["class_path"], given.get("init_args", {}))
    assert used["class_path"].endswith(method)
    for setting, value in settings.items():
        there = used["init_args"][setting]
        if isinstance(value, dict) and "class_path" in value:
            assert_used(value, there)
        else:
            assert there == value or value.items() <= there.items()  # with defaults added


@pytest.mark.parametrize("name", configs_for("predict"))
def test_every_prediction_runs(name: str, dng: Dng, in_place: Path, request: pytest.FixtureRequest):
    folder = Path("drawn", name)
    if CONFIGS[name]["model"]["class_path"] == "TextToImageSampler":
        request.getfixturevalue("text_to_image_place")
    its_models(name, request)
    configs = [f"--config={part}" for part in given_for(name)]
    dng("predict", *configs, "--data.num_samples=2", "--model.steps=3", f"--trainer.default_root_dir={folder}")
    assert sorted(path.name for path in folder.glob("0*.png")) == ["00000000.png", "00000001.png"]
    used = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    given = CONFIGS[name]["model"].get("init_args", {}).get("guidance", "DynamicNegativeGuidance")
    assert_used(given, used["guidance"])


def methods_of(*names: str) -> set[str]:
    """The classes of the guidances of comparisons."""
    return {guidance["class_path"] for name in names for guidance in CONFIGS[name]["model"]["init_args"]["guidances"]}


COMPARISONS = [name for name in configs_for("test") if name != "calibrate"]
# Between them they have every method that a comparison has.
RUN_TWICE = [
    "mnist_methods",
    "mnist_class_conditional",
    "mnist_tradeoff",
    "captioned_digits_related",
    "portraits_related",
    "test",
]


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_comparison_runs(name: str, dng: Dng, in_place: Path, request: pytest.FixtureRequest, capsys):
    folder = Path("compared", name)
    settings = [
        "--data.num_samples=4",
        "--model.steps=2",
        "--model.compile=false",
        f"--trainer.default_root_dir={folder}",
    ]
    its_models(name, request)
    if "reference_data" in CONFIGS[name]["data"]["init_args"]:
        settings.append("--data.reference_data.val_size=20")
    if name.startswith("portraits"):
        settings += ["--data.reference_data.train_size=64", "--data.reference_data.test_size=8"]
    model, (writer,) = CONFIGS[name]["model"]["init_args"], CONFIGS[name]["trainer"]["callbacks"]
    guidances = list({guidance["class_path"]: guidance for guidance in model["guidances"]}.values())  # one of each
    settings.append(f"--model.guidances={json.dumps(guidances)}")
    methods = [guidance["class_path"] for guidance in guidances if guidance["class_path"] != "Unguided"]
    before = ["Unguided"] if writer.get("init_args", {}).get("unguided", True) else []
    after = ["Retrained"] if model.get("retrained_checkpoint") else []
    dng("test", "--config", name, *settings)
    rows = list(csv.DictReader((folder / "results.csv").open(newline="")))
    found = [re.split(r"[,(]", row["method"])[0] for row in rows]  # "..., parity" is the same class, and what it wraps
    assert [method for method in found if method != "Rejection"] == [*before, *methods, *after]
    for row in rows:
        assert sum(map(int, row["class_counts"].split())) == int(row["n"])
        assert int(row["n"]) == 4 or row["method"] == "Rejection"
    written, runs = (folder / "results.csv").stat().st_mtime_ns, 1
    assert methods_of(name) <= methods_of(*RUN_TWICE)
    if name in RUN_TWICE:
        dng("test", "--config", name, *settings)  # nothing is done again
        assert (folder / "results.csv").stat().st_mtime_ns == written
        runs = 2
    tables = capsys.readouterr().out  # one after each run
    assert tables.count("\nDynamicNegativeGuidance") == runs * methods.count("DynamicNegativeGuidance")


def test_bare_predict_draws_from_the_shipped_model(dng: Dng, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dng("predict", "--data.num_samples=2", "--model.steps=2")
    folder = Path("samples/mnist-without-0-DynamicNegativeGuidance")
    assert sorted(path.name for path in folder.glob("0*.png")) == ["00000000.png", "00000001.png"]
    assert "0 ✗" in capsys.readouterr().out


def test_measuring_a_model_leaves_the_configuration_of_its_training(fitted: Fitted, dng: Dng, in_place: Path):
    config = fitted("mnist_classifier") / "config.yaml"
    before = config.read_text()
    settings = ["--config=mnist_classifier.yaml", *fit_settings("mnist_classifier"), "--trainer.limit_test_batches=1"]
    for command in ("validate", "test"):
        dng(command, *settings, f"--ckpt_path={config.with_name('model.ckpt')}")
    assert config.read_text() == before


def test_resuming_by_name(fitted: Fitted, dng: Dng, in_place: Path):
    """`--ckpt_path last`, as the configurations say; also longer, though the schedule ended with the first run."""
    tiny = fit_settings("mnist")
    assert json.loads((fitted("mnist") / "metrics.json").read_text())["steps"] == 4
    dng("validate", "--config=mnist.yaml", *tiny, "--ckpt_path=last")
    dng("fit", "--config=mnist.yaml", *tiny, "--trainer.max_steps=6", "--ckpt_path=last")
    assert json.loads((fitted("mnist") / "metrics.json").read_text())["steps"] == 6


def test_a_resumed_run_with_another_rate(fitted: Fitted, in_place: Path):
    fitted("mnist_only_0")
    args = [
        "fit",
        f"--config={resources.config('mnist_only_0')}",
        *QUIET,
        *fit_settings("mnist_only_0"),
        "--ckpt_path=last",
    ]
    for settings in ("--model.scheduler.max_lr=0.001", "--model.optimizer.lr=0.001"):
        constant = ["--model.scheduler=null"] if "optimizer" in settings else []
        more = ["--trainer.max_steps=50", "--trainer.max_time=00:00:00:01", "--trainer.default_root_dir=other"]
        last = f"--ckpt_path={fitted('mnist_only_0') / 'checkpoints' / 'last.ckpt'}"
        cli = run([*args, *constant, settings, *more, last])
        (group,) = cli.trainer.optimizers[0].param_groups
        assert group.get("max_lr", group["lr"]) == 0.001
        shutil.rmtree("other")


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
