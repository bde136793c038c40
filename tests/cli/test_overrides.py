"""The command line has the last word over configurations and checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from running import (
    CONFIGS,
    Dng,
    printed,
)

from dng_lightning.__main__ import run
from dng_lightning.guidance import DynamicNegativeGuidance, NegativePrompting
from dng_lightning.modules import DiffusionModule
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.storage import resources


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
    Path("two.yaml").write_text("model: {init_args: {guidance: {init_args: {scale: 2.0}}}}")

    def guidance(*args: str) -> dict[str, Any]:
        settings = printed(capsys, "predict", "--config=two.yaml", *args, "--print_config")
        return yaml.safe_load(settings)["model"]["init_args"]["guidance"]

    assert guidance()["init_args"]["scale"] == 2.0
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
