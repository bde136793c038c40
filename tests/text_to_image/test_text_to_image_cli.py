"""`dng predict` with Stable Diffusion's classes: what it writes, and what it says of mistakes."""

import re
import shutil
from pathlib import Path

import pytest
from running import Dng
from tiny_diffusion import tiny

from dng_lightning.data.pixels import from_png, to_uint8
from dng_lightning.guidance import CFGNegativePrompt
from dng_lightning.text_to_image import TextToImageSampler

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")


def test_predict_writes_images_beside_those_without_the_negative(
    folder: Path, dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "model")
    settings = ["--config=stable_diffusion", "--model.checkpoint=model", "--model.steps=3", "--data.num_samples=2"]
    dng("predict", *settings, "--model.prompt=a red/seven", "--model.negative_prompt=[a blue one, green]")
    made = Path("samples/model-without-a_blue_one-green-PositiveAndNegative")
    names = {path.name for path in made.iterdir()}
    assert {"00000000.png", "00000001.png", "grid.png", "trajectories.png", "labels.csv", "unguided"} <= names
    assert (made / "00000000.png").read_bytes() != (made / "unguided" / "00000000.png").read_bytes()
    assert "a red/seven" in (made / "labels.csv").read_text()
    twins = TextToImageSampler("model", "a red/seven", ["a blue one", "green"], steps=3).draw(
        [1], CFGNegativePrompt(7.5)
    )
    written = from_png(made / "CFGNegativePrompt_scale_7_5" / "00000001.png").int()
    assert (written - to_uint8(twins.images)[0].int()).abs().max() <= 1
    costs = re.findall(r"^ *(\S.*?) {2,}(\d+) +([\d.e+]+)$", capsys.readouterr().out, re.MULTILINE)
    methods = ["unguided", "CFGNegativePrompt, scale 7.5", "PositiveAndNegative(DynamicNegativeGuidance)"]
    assert [(name, int(evaluations)) for name, evaluations, _ in costs] == list(zip(methods, (6, 9, 12), strict=True))
    assert all(float(speed) > 0 for _, _, speed in costs)
    dng("predict", *settings, "--model.prompt=a red/seven", "--model.negative_prompt=[a blue one, green]")
    assert "network evaluations" not in capsys.readouterr().out  # nothing was left to be drawn
    dng("predict", *settings, "--model.negative_prompt=null", "--model.guidance=null")
    made = Path("samples/model-without-nothing")
    assert (made / "00000001.png").exists()
    assert not [path for path in made.iterdir() if path.is_dir() and path.name != "records"]  # they are that themselves


def test_predict_with_sdxl(dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny(Path("xl"), xl=True)
    settings = ["--model.checkpoint=xl", "--model.negative_prompt=blue", "--model.steps=3", "--data.num_samples=2"]
    dng("predict", "--config=stable_diffusion", *settings)
    made = Path("samples/xl-without-blue-PositiveAndNegative")
    first, second = ((made / f"0000000{number}.png").read_bytes() for number in range(2))
    assert first != second
    assert first != (made / "unguided" / "00000000.png").read_bytes()
    assert (made / "trajectories.png").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["--model.checkpoint=nowhere"], "No checkpoint 'nowhere'"),
        (["--model.checkpoint=mnist"], "holds no text-to-image model in diffusers' format"),
        (["--model.negative_prompt="], "negative_prompt is empty: say what to avoid"),
        (["--model.negative_prompt=null"], "avoids something: set negative_prompt, or guidance to null"),
    ],
)
def test_mistakes_are_one_line(
    settings: list[str], line: str, folder: Path, dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        dng("predict", "--config=stable_diffusion", f"--model.checkpoint={folder}", *settings)
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("dng: error: ")
    assert line in said
    assert not list(tmp_path.iterdir())
