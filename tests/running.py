"""What the tests that run the command line share."""

import contextlib
import functools
import io
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure

from dng_lightning.__main__ import main
from dng_lightning.storage import resources

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]

# The networks of other libraries, narrow.
TINY_TEXT_ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = {
    "captioned_digits_autoencoder": {"net": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}},
    "captioned_digits": {
        "unet": {"block_out_channels": [8, 8], "norm_num_groups": 4, "attention_head_dim": 2},
        "text_encoder": TINY_TEXT_ENCODER,
    },
    "portraits": {
        "transformer": {"hidden_size": 16, "num_heads": 1, "axes_dim": [8, 8], "depth": 1, "bottleneck_size": 8},
        "text_encoder": TINY_TEXT_ENCODER,
    },
}


def fit_settings(config: str) -> list[str]:
    """What makes a shipped training tiny: one batch an epoch, a narrow network, few samples."""
    settings = [f"--model.{part}.{k}={v}" for part, given in TINY.get(config, {}).items() for k, v in given.items()]
    settings = settings or ["--model.net.channels=8" if "probe" in config else "--model.net.channels=[8]"]
    settings += ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    settings += [] if config.startswith("digits") else ["--data.val_size=20"]  # of 200 images
    settings += ["--data.train_size=64", "--data.test_size=8"] if config.startswith("portraits") else []
    if "classifier" not in config and "probe" not in config:
        large = "mnist" in config or "cifar10" in config
        settings += ["--model.compile=false"] + (["--model.net.patch=4"] if large else [])
    return settings + (few_samples(config) if "callbacks" in EVERY.get(config, {}).get("trainer", {}) else [])


def few_samples(config: str) -> list[str]:
    """The callbacks of a shipped training; those that sample draw few images in few steps."""
    callbacks = EVERY[config]["trainer"]["callbacks"]
    few = {"GuidedSampling": {"num_samples": 4, "steps": 3}, "PromptSampling": {"num_samples": 1, "steps": 3}}
    shown = [
        callback | {"init_args": callback["init_args"] | few[kind]}
        if (kind := callback["class_path"].rpartition(".")[2]) in few
        else callback
        for callback in callbacks
    ]
    return [f"--trainer.callbacks={json.dumps(shown)}"] if shown != callbacks else []


Dng = Callable[..., None]
Fitted = Callable[[str], Path]
DngProcess = Callable[..., "subprocess.CompletedProcess[str]"]

EVERY = {name: yaml.safe_load(resources.config(name).read_text()) for name in resources.configs()}
# the others go on top of one of these
CONFIGS = {name: config for name, config in EVERY.items() if "class_path" in config.get("model", {})}
OVERLAYS = {
    name: re.findall(r"--config (\w+)\.yaml", resources.config(name).read_text())
    for name in EVERY
    if name not in CONFIGS
}
# those of other pipelines, which `test_pipeline_sampler.py` runs
PIPELINES = [name for name, config in CONFIGS.items() if config["model"]["class_path"] == "PipelineSampler"]
IN_WORDS = ["captioned_digits_autoencoder", "captioned_digits", "portraits"]  # trainings that need an extra


def command_of(name: str) -> str:
    """The command that a shipped configuration is for."""
    if CONFIGS[name]["model"]["class_path"].endswith("Module"):
        return "fit"
    tested = {"ResultsWriter", "CalibrationWriter"}
    callbacks = CONFIGS[name].get("trainer", {}).get("callbacks", [])
    return "test" if tested & {callback["class_path"] for callback in callbacks} else "predict"


def its_models(name: str, request: pytest.FixtureRequest) -> None:
    """Tiny models of the family that a shipped configuration is of, beside those of `place`."""
    for family in ("cifar10", "captioned", "portraits"):
        if name.startswith(family):
            request.getfixturevalue(f"{family}_place")


def configs_for(command: str) -> list[str]:
    return [name for name in CONFIGS if command_of(name) == command and name not in PIPELINES]


def given_for(name: str) -> list[str]:
    """The configurations that go to `dng predict` with it, as it says itself: those it is an overlay of, and it."""
    line = re.search("dng predict .*", resources.config(name).read_text())
    named = re.findall(r"--config (\w+)", line[0] if line else "")
    return named if named[-1:] == [name] else [name]


def is_shipped(words: list[str]) -> bool:
    """Whether a command has shipped configurations and no other setting: cli/shipped tries those."""
    command, *settings = words
    names = [Path(name).stem for name in settings[1::2]]
    if not names or set(settings[::2]) != {"--config"}:
        return False
    if names[-1] in OVERLAYS:
        return names == OVERLAYS[names[-1]]
    return names == ([names[0]] if command != "predict" else given_for(names[-1])) and command_of(names[-1]) == command


@functools.cache
def printed_configuration(*names: str) -> str:
    """The settings of shipped configurations, the later ones on top."""
    settings = [f"--config={name}.yaml" for name in names]
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as ended:
        main([command_of(names[0]), *settings, "--print_config"])
    assert ended.value.code == 0
    return output.getvalue()


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What a command prints before it exits well."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 0
    return capsys.readouterr().out


def ends_well(call: Callable[..., None], *words: object) -> None:
    """Call; what exits instead of returning exits well."""
    try:
        call(*words)
    except SystemExit as ended:
        assert not ended.code  # noqa: PT017  # some of these return, and some exit


DRAW = Figure.draw


@contextlib.contextmanager
def rendered_figures() -> Iterator[None]:
    """Figures are drawn as outside the tests, for what looks at them; see ``blank_figures`` in conftest.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", DRAW)
        yield


@contextlib.contextmanager
def closed_pipe() -> Iterator[io.TextIOWrapper]:
    """An unbuffered standard output whose reader has left; closing it fails where it still points at the pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(io.FileIO(writing, "w"), write_through=True) as output:  # type: ignore[arg-type]
        yield output
