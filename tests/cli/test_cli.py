"""Every shipped configuration parses and runs, and the command line has the last word."""

import csv
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import (
    CONFIGS,
    IN_WORDS,
    QUIET,
    Dng,
    Fitted,
    closed_pipe,
    command_of,
    configs_for,
    ends_well,
    fit_settings,
    given_for,
    its_models,
    printed,
    printed_configuration,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dng_lightning import __version__
from dng_lightning.__main__ import main, run
from dng_lightning.guidance import DynamicNegativeGuidance, NegativePrompting
from dng_lightning.modules import DiffusionModule
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.storage import resources

ROOT = Path(__file__).resolve().parents[2]


# --- help ---


def test_help_and_version_import_nothing_heavy():
    code = "import sys; from dng_lightning.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    for arg, expected in (("--help", "usage: dng COMMAND"), ("--version", __version__)):
        out = subprocess.run([sys.executable, "-c", code, arg], capture_output=True, text=True, check=True).stdout
        assert expected in out
        assert not {"torch", "lightning", "matplotlib"} & set(out.splitlines()[-1].split())


def test_the_help_names_real_configs_and_commands(capsys: pytest.CaptureFixture[str]):
    main([])
    text = capsys.readouterr().out
    assert "dng predict" in text
    for word in text.split():
        if word.endswith(".yaml"):
            resources.config(word)


def test_a_command_explains_its_settings(capsys: pytest.CaptureFixture[str]):
    text = printed(capsys, "predict", "--help")
    assert "--trainer.default_root_dir" in text
    assert "--model.help" in text


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys):
    """As `head` is, at the end of a pipe; also at the end of the interpreter."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-u", "-m", "dng_lightning", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    with closed_pipe() as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        ends_well(main, ["predict", "--help"])
    assert capsys.readouterr().err == ""


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


def methods_of(*names: str) -> set[str]:
    """The classes of the guidances of comparisons."""
    return {guidance["class_path"] for name in names for guidance in CONFIGS[name]["model"]["init_args"]["guidances"]}


COMPARISONS = [name for name in configs_for("test") if name != "calibrate"]
# Between them they have every method that a comparison has.
RUN_TWICE = ["mnist_methods", "mnist_class_conditional", "mnist_tradeoff", "captioned_digits_related", "test"]


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


def test_bare_predict_draws_from_the_shipped_model(dng: Dng, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dng("predict", "--data.num_samples=2", "--model.steps=2")
    folder = Path("samples/mnist-without-0-DynamicNegativeGuidance")
    assert sorted(path.name for path in folder.glob("0*.png")) == ["00000000.png", "00000001.png"]
    assert "0 ✗" in capsys.readouterr().out


# --- what is found where ---


@pytest.mark.parametrize("args", [("--config", "digits.yaml"), ("--config=digits",), ("-c", "digits"), ()])
def test_a_bare_name_is_found_from_any_folder(args: tuple[str, ...], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(printed(capsys, "fit", *args, "--print_config"))
    assert settings["trainer"]["default_root_dir"] == "logs/digits"


def test_a_local_config_wins(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    local = CONFIGS["digits"] | {"seed_everything": 123}
    Path("digits.yaml").write_text(yaml.safe_dump(local))
    assert "seed_everything: 123" in printed(capsys, "fit", "--config", "digits.yaml", "--print_config")
    assert "seed_everything: 0" in printed(capsys, "fit", "--config", "digits", "--print_config")


def test_later_settings_win(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("data: {class_path: Seeds, init_args: {num_samples: 5, batch_size: 2}}")
    args = [
        "--config=negative_prompting.yaml",
        "--config=mine.yaml",
        "--data.num_samples=6",
        "--model.guidance.scale=7",
    ]
    settings = yaml.safe_load(printed(capsys, "predict", *args, "--print_config"))
    assert settings["data"]["init_args"] == {
        "num_samples": 6,
        "first_seed": 0,
        "batch_size": 2,
        "reference_data": None,
    }
    assert settings["model"]["init_args"]["guidance"]["init_args"] == {"scale": 7.0}


# --- overrides ---


def test_a_class_that_replaces_another_takes_none_of_its_settings(tmp_path: Path, monkeypatch, capsys):
    """Scale 2 of the configuration is that of Dynamic Negative Guidance."""
    monkeypatch.chdir(tmp_path)
    assert CONFIGS["predict"]["model"]["init_args"]["guidance"]["init_args"]["scale"] == 2.0

    def guidance(*args: str) -> dict[str, Any]:
        return yaml.safe_load(printed(capsys, "predict", *args, "--print_config"))["model"]["init_args"]["guidance"]

    assert guidance("--model.guidance=NegativePrompting")["init_args"] == {"scale": NegativePrompting().scale}
    assert guidance("--model.guidance=NegativePrompting", "--model.guidance.scale=3")["init_args"] == {"scale": 3.0}
    Path("mine.yaml").write_text("model: {init_args: {guidance: NegativePrompting}}")
    assert guidance("--config=mine.yaml")["init_args"] == {"scale": NegativePrompting().scale}
    named_again = guidance("--model.guidance=DynamicNegativeGuidance", "--model.guidance.skip_below=0.1")["init_args"]
    assert (named_again["scale"], named_again["skip_below"]) == (2.0, 0.1)


@pytest.mark.parametrize("text", ["a cat: asleep", "{}", "{x", "a # b", "-", '"quoted"', "it's: 'x'"])
def test_any_text_is_a_prompt(text: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")
    args = ["--config=stable_diffusion.yaml", f"--model.prompt={text}", f"--model.negative_prompt={text}"]
    settings = yaml.safe_load(printed(capsys, "predict", *args, "--print_config"))["model"]["init_args"]
    assert (settings["prompt"], settings["negative_prompt"]) == (text, text)


def test_the_readme_overrides(from_tiny: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    override = ["--model.guidance=NegativePrompting", "--model.guidance.scale=1", "--model.forbidden=3"]
    seeds = ["--data.num_samples=3", "--data.first_seed=1000", "--data.batch_size=2", "--trainer.default_root_dir=here"]
    cli = run(["predict", f"--config={resources.config('predict')}", *from_tiny, *override, *seeds])
    assert cli.model.guidance == NegativePrompting(scale=1)
    assert cli.model.forbidden == [3]
    assert sorted(path.name for path in Path("here").glob("0*.png")) == [f"0000100{i}.png" for i in range(3)]
    assert {path.name for path in Path().iterdir()} == {"here"}


def test_several_forbidden_classes_and_the_default_folder(from_tiny: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = run(
        [
            "predict",
            f"--config={resources.config('predict')}",
            *from_tiny,
            "--model.forbidden=[0,6]",
            "--data.num_samples=1",
        ]
    )
    assert cli.model.forbidden == [0, 6]
    given = dict(CONFIGS["predict"]["model"]["init_args"]["guidance"]["init_args"])
    assert given.pop("posterior") == {"class_path": "CalibratedPosterior"}  # and this checkpoint has none
    assert cli.model.guidance == DynamicNegativeGuidance(**given, posterior=TrackedPosterior(guidance_shift_weight=0.0))
    (folder,) = Path("samples").iterdir()
    assert folder.name.endswith("-without-0-6-DynamicNegativeGuidance")


def test_other_settings_get_another_default_folder(dng: Dng, from_tiny: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scale = "--model.guidance.scale=3"
    for settings in ([], [scale], [scale, "--data.num_samples=3"], [], ["--model.eta=0"]):
        dng("predict", *from_tiny, "--data.num_samples=2", *settings)
    (first, second, third) = sorted(Path("samples").iterdir())
    assert first.name.endswith("-without-0-DynamicNegativeGuidance")
    assert (second.name, third.name) == (f"{first.name}-2", f"{first.name}-3")
    assert [len(list(folder.glob("0*.png"))) for folder in (first, second, third)] == [2, 3, 2]


def test_the_command_line_wins_over_what_a_checkpoint_stored(tiny_checkpoint: Path, tmp_path: Path):
    """Lightning would silently take the checkpoint's hyper-parameters."""
    last = tiny_checkpoint / "checkpoints" / "last.ckpt"
    stored = DiffusionModule.load(str(last))
    net = ["--model.net.channels=[16]", "--model.net.attention=[]"]
    args = ["--model.condition_dropout=0.75", "--model.prediction=eps", f"--ckpt_path={last}"]
    quiet = ["--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"]
    folder = f"--trainer.default_root_dir={tmp_path}"
    cli = run(["validate", f"--config={resources.config('digits')}", *net, *args, *quiet, folder])
    assert (stored.condition_dropout, stored.prediction) == (0.3, "v")
    assert (cli.model.condition_dropout, cli.model.prediction) == (0.75, "eps")
    assert cli.model.net.stem.weight.equal(stored.net.stem.weight)  # and yet the weights were loaded


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


def test_a_new_run_from_weights(tiny_fit: Path, dng: Dng, from_tiny: list[str], capsys):
    other = "--trainer.default_root_dir=b"
    dng("fit", *TINY_FIT, other, "--weights=a", "--model.optimizer.lr=0", "--model.scheduler=null")
    first, second = (torch.load(f"{name}/model.ckpt", weights_only=True)["state_dict"] for name in "ab")
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert yaml.safe_load(Path("b/config.yaml").read_text())["weights"] == "a"
    line = refused(dng, capsys, "fit", *TINY_FIT, "--weights=a", "--trainer.default_root_dir=a")
    assert "a holds model.ckpt made with these model settings" in line
    assert "--weights is for trainings" in refused(dng, capsys, "predict", *from_tiny, "--weights=a")


def test_what_cannot_be_resumed_is_refused_in_one_line(tiny_fit: Path, dng: Dng, capsys):
    torch.save({"state_dict": {}}, "foreign.ckpt")
    before = content(Path())

    def line(*args: str) -> str:
        return refused(dng, capsys, "fit", *TINY_FIT, "--trainer.default_root_dir=a", *args)

    assert "holds weights alone: start a new run from them with --weights" in line("--ckpt_path=a")
    exported = torch.load("a/model.ckpt", weights_only=True)
    torch.save(exported | {"pytorch-lightning_version": "1.5.10"}, "old.ckpt")
    before = content(Path())
    assert "holds weights alone" in line("--ckpt_path=old.ckpt")
    assert "--ckpt_path best" in line("--ckpt_path=best")
    assert "foreign.ckpt is no checkpoint of a training: Lightning did not write it" in line("--ckpt_path=foreign.ckpt")
    other = ["--model.net.channels=[16]", "--trainer.max_steps=9"]
    assert "of another network (net." in line("--ckpt_path=last", *other)
    assert content(Path()) == before


# --- what a folder holds ---

TINY_FIT = [
    "--config=digits.yaml",
    "--model.net.channels=[8]",
    "--model.net.attention=[]",
    "--trainer.max_steps=3",
    "--trainer.limit_val_batches=1",
    "--trainer.callbacks=[{class_path: EMA}, {class_path: Export}, {class_path: ModelCheckpoint, init_args: "
    "{save_last: true}}]",
]


def content(folder: Path) -> dict[str, bytes]:
    """What is in each file, but for TensorBoard's, which a training that is refused late starts as well."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("events")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(dng: Dng, capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The line with which `dng` refuses to do something."""
    with pytest.raises(SystemExit) as ended:
        dng(*args)
    assert ended.value.code == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("dng: error:"))


@pytest.fixture
def tiny_fit(dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `a` of a finished training, below the working directory."""
    monkeypatch.chdir(tmp_path)
    dng("fit", *TINY_FIT, "--trainer.default_root_dir=a")
    return Path("a")


def test_a_dry_run_writes_nothing(tiny_fit: Path, dng: Dng, from_tiny: list[str], digits: Path):
    before = content(Path())
    dng("fit", *TINY_FIT, "--trainer.default_root_dir=a", "--trainer.fast_dev_run=true", "--model.net.channels=[16]")
    dng("predict", *from_tiny, "--trainer.fast_dev_run=true")
    drawn = [f"--model.checkpoint={digits}", "--model.classifier=digits-classifier", "--model.steps=2"]
    dng("test", *drawn, "--data.reference_data=Digits", "--trainer.fast_dev_run=true")
    dng("test", "--config=calibrate.yaml", *from_tiny, "--trainer.fast_dev_run=true")
    assert content(Path()) == before


def test_a_second_training_in_the_same_folder_is_refused(tiny_fit: Path, dng: Dng, capsys):
    before = content(tiny_fit)
    again = ["fit", *TINY_FIT, "--trainer.default_root_dir=a"]
    line = refused(dng, capsys, *again, "--model.net.channels=[16]")
    assert "a holds model.ckpt made with other settings (model.net.channels [8] instead of [16])" in line
    assert "resume it with --ckpt_path last, name another --trainer.default_root_dir, or remove it" in line
    assert "made with these model settings" in refused(dng, capsys, *again)
    dng("fit", *TINY_FIT, "--trainer.default_root_dir=b")
    elsewhere = "--ckpt_path=b/checkpoints/last.ckpt"
    assert "made with these model settings" in refused(dng, capsys, *again, elsewhere)
    (tiny_fit / "model.ckpt").rename("model.ckpt")  # as if it had been interrupted
    assert "last.ckpt made with these" in refused(dng, capsys, *again)
    Path("model.ckpt").rename(tiny_fit / "model.ckpt")
    assert content(tiny_fit) == before


def test_images_are_not_drawn_into_the_folder_of_a_training(tiny_fit: Path, dng: Dng, from_tiny: list[str], capsys):
    before = content(tiny_fit)
    line = refused(dng, capsys, "predict", *from_tiny, "--trainer.default_root_dir=a")
    assert "a holds model.ckpt made with other settings" in line
    assert content(tiny_fit) == before


def test_a_refused_resumption_writes_nothing(tiny_fit: Path, dng: Dng, capsys):
    before = content(tiny_fit)
    schedule = "{class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.1, total_steps: 5}}"
    settings = [f"--model.scheduler={schedule}", "--trainer.max_steps=9", "--trainer.default_root_dir=a"]
    assert "schedule" in refused(dng, capsys, "fit", *TINY_FIT, *settings, "--ckpt_path=last")
    assert content(tiny_fit) == before


def test_a_saved_configuration_runs_again_anywhere(tiny_fit: Path, dng: Dng):
    dng("fit", *TINY_FIT, "--trainer.max_steps=5", "--trainer.default_root_dir=a", "--ckpt_path=last")
    before = content(tiny_fit)
    dng("fit", "--config=a/config.yaml", "--trainer.default_root_dir=b")
    assert content(tiny_fit) == before
    assert {"config.yaml", "model.ckpt", "hparams.yaml", "checkpoints/last.ckpt"} <= set(content(Path("b")))
    assert list(Path("b").glob("events*"))
    assert json.loads(Path("b/metrics.json").read_text())["steps"] == 5  # from the start: a resumption is none of it


def test_a_module_beside_the_command_is_found(dng: Dng, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    Path("mynets.py").write_text("from dng_lightning.networks import UNet\n\n\nclass Own(UNet):\n    pass\n")
    with pytest.raises(SystemExit) as ended:
        dng("fit", "--model.net=mynets.Own", "--print_config")
    assert ended.value.code in (None, 0)
    assert "class_path: mynets.Own" in capsys.readouterr().out


def test_shells_complete_options_and_classes(dng: Dng, tmp_path: Path, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed (extra completion)")
    with pytest.raises(SystemExit) as ended:
        dng("--print_shtab", "bash")
    assert ended.value.code is None
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for word in ("predict", "--model.checkpoint", "--model.guidance", "dng_lightning.data.ImageFolder", "--data.root"):
        assert re.search(rf"[ ('\"]{re.escape(word)}[ )'\"]", script), word
    assert "torchvision." not in script
    with pytest.raises(SystemExit) as ended:
        dng("--print_shtab", "cmd")
    assert ended.value.code == 2
    assert "dng: error: --print_shtab cmd: give bash, " in capsys.readouterr().err


def test_whatever_the_logger_results_of_two_settings_do_not_mix(dng: Dng, from_tiny: list[str], tmp_path: Path, capsys):
    logger = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: " + str(tmp_path / "logged") + "}}"
    settings = [
        "predict",
        *from_tiny,
        "--data.num_samples=2",
        logger,
        f"--trainer.default_root_dir={tmp_path / 'drawn'}",
    ]
    dng(*settings)
    line = refused(dng, capsys, *settings, "--model.guidance=NegativePrompting")
    assert "records made with other settings (model.guidance" in line
    line = refused(dng, capsys, *settings, "--model.steps=2")
    assert "(model.steps 3 instead of 2)" in line


def test_whatever_the_logger_a_training_finds_its_last_checkpoint(dng: Dng, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["fit", *TINY_FIT, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logged"]
    settings += ["--trainer.default_root_dir=a", "--model.scheduler=null"]
    dng(*settings)
    dng(*settings, "--ckpt_path=last", "--trainer.max_steps=5")
    assert json.loads(Path("a/metrics.json").read_text())["steps"] == 5
    assert [path.name for path in Path("a/checkpoints").iterdir()] == ["last.ckpt"]


def test_images_of_a_model_that_was_trained_or_calibrated_anew_are_others(
    tiny_checkpoint: Path, dng: Dng, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "model")
    settings = [
        "--model.checkpoint=model",
        "--model.classifier=digits-classifier",
        "--model.steps=3",
        "--data.num_samples=4",
    ]
    method = "{class_path: DynamicNegativeGuidance, init_args: {posterior: CalibratedPosterior}}"
    compared = [*settings, "--data.reference_data=Digits", "--model.guidances=[" + method + "]"]
    here = "--trainer.default_root_dir=here", "--trainer.default_root_dir=there"
    dng("predict", *settings, here[0])
    dng("predict", *settings)
    dng("test", *compared, here[1])
    rows = len(Path("there/results.csv").read_text().splitlines())

    calibration = {"calibration": [[-5.0, 1.0, -2.0], [5.0, 1.0, -1.0]]}
    guidance = {"init_args": {"posterior": {"init_args": calibration}}}
    Path("model/calibration.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"guidance": guidance}}}))
    assert "(the calibration has changed since)" in refused(dng, capsys, "predict", *settings, here[0])
    dng("predict", *settings)  # the default folder is another one then
    assert len(list(Path("samples").iterdir())) == 2
    dng("test", *compared, here[1])  # another row
    assert len(Path("there/results.csv").read_text().splitlines()) == rows + 1

    stored = torch.load("model/model.ckpt", weights_only=True)
    stored["state_dict"]["net.stem.bias"] += 0.1
    torch.save(stored, "model/model.ckpt")
    for command, folder, given in (("predict", here[0], settings), ("test", here[1], compared)):
        assert "(the checkpoint has changed since)" in refused(dng, capsys, command, *given, folder)
