"""`dng predict` continues what was interrupted and refuses folders of other settings."""

from pathlib import Path

import pytest
from predicted import state
from running import Dng

from dng_lightning.evaluation.runs import Samples
from dng_lightning.guidance import (
    Guidance,
)
from dng_lightning.modules import GuidedSampler


def test_it_goes_on_where_it_was_interrupted(
    dng: Dng, from_tiny: list[str], tmp_path: Path, monkeypatch, evaluated: list[int]
):
    settings = ["predict", *from_tiny, "--data.num_samples=6", "--data.batch_size=2"]
    dng(*settings, f"--trainer.default_root_dir={tmp_path / 'whole'}")
    whole = sum(evaluated)
    assert whole == 6 * 3 * (2 + 1)  # null and forbidden class together, and the unguided twin

    draw, calls = GuidedSampler.draw, []

    def interrupted(self: GuidedSampler, seeds: list[int], guidance: Guidance | None = None) -> Samples:
        calls.append(seeds)
        if len(calls) == 4:  # the twins of the second batch: the guided images are drawn and not yet written
            raise RuntimeError("power cut")
        return draw(self, seeds, guidance)

    monkeypatch.setattr(GuidedSampler, "draw", interrupted)
    evaluated.clear()
    folder = tmp_path / "interrupted"
    with pytest.raises(RuntimeError, match="power cut"):
        dng(*settings, f"--trainer.default_root_dir={folder}")
    assert sorted(path.name for path in folder.glob("0*.png")) == ["00000000.png", "00000001.png"]
    assert not (folder / "labels.csv").exists()
    monkeypatch.setattr(GuidedSampler, "draw", draw)

    before = state(folder)
    evaluated.clear()
    dng(*settings, f"--trainer.default_root_dir={folder}")
    assert sum(evaluated) == whole * 4 // 6
    assert before.items() <= state(folder).items()  # what was finished is untouched
    assert state(folder).keys() == state(tmp_path / "whole").keys()
    for path in (tmp_path / "whole").rglob("*.*"):
        if path.name != "config.yaml":
            assert path.read_bytes() == (folder / path.relative_to(tmp_path / "whole")).read_bytes(), path


def test_missing_records_are_drawn_again_and_nothing_else(
    dng: Dng, from_tiny: list[str], tmp_path: Path, evaluated: list[int]
):
    settings = [
        "predict",
        *from_tiny,
        "--data.num_samples=4",
        "--data.batch_size=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    dng(*settings)
    (tmp_path / "records" / "00000002.json").unlink()
    before, table = state(tmp_path), (tmp_path / "labels.csv").read_text()
    evaluated.clear()
    dng(*settings)
    assert sum(evaluated) == 3 * (2 + 1)
    changed = {name for name, value in state(tmp_path).items() if before.get(name) != value}
    assert changed == {
        f"{folder}00000002.{kind}"
        for folder, kind in (("", "png"), ("records/", "json"), ("unguided/", "png"), ("unguided/records/", "json"))
    }
    assert (tmp_path / "labels.csv").read_text() == table


def test_a_finished_prediction_is_only_summarised(
    dng: Dng, from_tiny: list[str], tmp_path: Path, evaluated: list[int], capsys
):
    settings = ["predict", *from_tiny, f"--trainer.default_root_dir={tmp_path}"]
    dng(*settings, "--data.num_samples=3")
    first, before = capsys.readouterr().out, state(tmp_path)
    evaluated.clear()
    dng(*settings, "--data.num_samples=3")
    assert not evaluated
    assert state(tmp_path) == before
    costs, end = first.rindex("\n", 0, first.index("network evaluations")), first.rindex("\nwritten to")
    assert capsys.readouterr().out == first[:costs] + first[end:]  # nothing was drawn, so it cost nothing
    dng(*settings, "--data.num_samples=5", "--data.batch_size=1")  # more of them, drawn in other batches
    assert before.items() <= state(tmp_path).items()
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1 + 5


def test_images_that_were_not_shown_before_can_be_shown_now(dng: Dng, from_tiny: list[str], tmp_path: Path):
    settings = ["predict", *from_tiny, f"--trainer.default_root_dir={tmp_path}"]
    shown = "--trainer.callbacks=[{class_path: ImageWriter, init_args: {num_shown: 2}}]"
    dng(*settings, shown, "--data.num_samples=4")
    before = state(tmp_path)
    dng(*settings, shown, "--data.num_samples=3", "--data.first_seed=2")
    assert sorted(path.name for path in (tmp_path / "unguided").glob("*.png")) == [f"0000000{i}.png" for i in range(4)]
    assert all(state(tmp_path)[name] == before[name] for name in ("00000000.png", "00000001.png"))


@pytest.mark.parametrize(
    "other",
    ["--model.steps=4", "--model.forbidden=1", "--model.guidance=NegativePrompting", "--trainer.precision=bf16-mixed"],
)
def test_other_settings_in_the_same_folder_are_refused(
    other: str, dng: Dng, from_tiny: list[str], tmp_path: Path, capsys
):
    settings = ["predict", *from_tiny, "--data.num_samples=2", f"--trainer.default_root_dir={tmp_path}"]
    dng(*settings)
    config, before = (tmp_path / "config.yaml").read_bytes(), state(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        dng(*settings, other)
    assert ended.value.code == 2
    assert "made with other settings" in capsys.readouterr().err
    assert state(tmp_path) == before
    assert (tmp_path / "config.yaml").read_bytes() == config


@pytest.mark.parametrize("damaged", [b"", b"model: [", b"\xff\xfe", b"- 1", b"model:", b"seed_everything: 0"])
@pytest.mark.parametrize(("command", "result"), [("predict", "records"), ("test", "results.csv")])
def test_a_folder_whose_configuration_is_damaged_is_refused_in_one_line(
    command: str, result: str, damaged: bytes, dng: Dng, from_tiny: list[str], tmp_path: Path, capsys
):
    (tmp_path / result).touch()
    (tmp_path / "config.yaml").write_bytes(damaged)
    real = ["--data.reference_data=Digits"] if command == "test" else []
    with pytest.raises(SystemExit) as ended:
        dng(command, *from_tiny, *real, "--data.num_samples=2", f"--trainer.default_root_dir={tmp_path}")
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dng: error:")]
    assert f"{tmp_path} holds {result} made with other" in line
    assert "config.yaml or inputs.json is missing or damaged" in line
    assert (tmp_path / "config.yaml").read_bytes() == damaged
