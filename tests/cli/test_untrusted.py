"""Names from outside stay inside the output folder, the main commands need no network, calibrations hold no code."""

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from running import Dng

from dng_lightning.cli.output_folder import OutputFolder
from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.modules import GuidedSampler
from dng_lightning.posterior import CalibratedPosterior
from dng_lightning.storage.files import file_name

HOSTILE = ["../../evil", "/tmp/evil", "a/../../evil", "..", ".", "\0", "a\0/b", "x" * 5000, "~", "C:\\evil", "\n"]


@given(st.text() | st.sampled_from(HOSTILE))
def test_a_text_as_a_part_of_a_file_s_name_is_one_short_part(text: str):
    name = file_name(text)
    assert len(name) <= 60
    assert not {"/", "\\", "\0", ".", "\n"} & set(name)


@pytest.mark.parametrize("forbidden", [*HOSTILE, HOSTILE, ["x" * 50] * 20, [], None, [3, 4]])
@pytest.mark.parametrize("checkpoint", ["mnist", "..", "../..", "/", "hf:owner/../model", "x" * 250])
@pytest.mark.parametrize("command", ["predict", "test"])
def test_the_default_output_folder_is_below_the_current_one(
    command: str, checkpoint: str, forbidden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    settings = {"forbidden": forbidden, "checkpoint": checkpoint, "guidance": SimpleNamespace(class_path="a.Method")}

    class Arguments(SimpleNamespace):
        def __getitem__(self, name: str) -> Any:
            return settings[name]

    model = SimpleNamespace(class_path="GuidedSampler", init_args=Arguments(**settings))
    config = {command: SimpleNamespace(model=model)}
    cli: Any = SimpleNamespace(subcommand=command, config=config, is_sampling=True)
    folder = Path(OutputFolder(cli).default())
    assert folder.parts[0] == {"predict": "samples", "test": "results"}[command]
    assert len(folder.parts) == 2
    assert ".." not in folder.parts
    folder.mkdir(parents=True)  # no name is too long


@pytest.mark.slow
def test_fit_predict_and_test_without_a_network(dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("something asked for a connection")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.chdir(tmp_path)
    few = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.default_root_dir=model"]
    dng("fit", "--config=digits.yaml", "--model.net.channels=[8]", *few)
    sampler = ["--model.checkpoint=model", "--model.classifier=digits-classifier", "--model.steps=2"]
    dng("predict", *sampler, "--data.num_samples=2", "--trainer.default_root_dir=samples")
    compared = ["--model.guidances=[NegativePrompting]", "--data.num_samples=12", "--data.reference_data=Digits"]
    dng("test", *sampler, *compared, "--trainer.default_root_dir=results")
    assert Path("model/model.ckpt").exists()
    assert Path("samples/grid.png").exists()
    assert len(Path("results/results.csv").read_text().splitlines()) >= 3


@pytest.mark.parametrize(
    "content",
    [
        "!!python/object/apply:pathlib.Path.touch [ran]",
        "model: {init_args: {guidance: !!python/object/apply:os.system ['touch ran']}}",
        yaml.safe_dump({"class_path": "os.system", "init_args": {"command": "touch ran"}}),
        yaml.safe_dump({"model": {"init_args": {"guidance": {"class_path": "os.system", "init_args": {
            "posterior": {"class_path": "os.system", "init_args": {"command": "touch ran", "calibration": "touch ran"}}
        }}}}}),
    ],
)  # fmt: skip
def test_code_in_a_calibration_is_not_run(content: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, "model")
    Path("model/calibration.yaml").write_text(content)
    with pytest.raises(SettingError, match=r"calibration\.yaml is no calibration"):
        GuidedSampler("model", guidance=DynamicNegativeGuidance(posterior=CalibratedPosterior()))
    assert not Path("ran").exists()


def test_class_paths_in_a_calibration_are_not_called(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only its rows are read."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, "model")
    touch = {"class_path": "os.system", "init_args": {"command": "touch ran", "calibration": [[0.0, 1.0, 0.0]]}}
    guidance = {"class_path": "os.system", "init_args": {"command": "touch ran", "posterior": touch}}
    Path("model/calibration.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"guidance": guidance}}}))
    sampler = GuidedSampler("model", guidance=DynamicNegativeGuidance(posterior=CalibratedPosterior()))
    assert "[[0.0, 1.0, 0.0]]" in repr(sampler.guidance)
    assert not Path("ran").exists()
