"""Damaged files in output folders and data, as scripts/fuzz.py makes them: mended, or refused in a line."""

import shutil
from pathlib import Path

import pytest
from running import Dng

from dng_lightning.data.table import read_table
from dng_lightning.errors import SettingError
from dng_lightning.evaluation import results_file
from dng_lightning.modules.checkpoint_settings import read_references
from dng_lightning.storage.files import check_yaml

DAMAGES = [b'{"seed": 0, "cl', b"\xaa", b"[1, 2]"]


@pytest.fixture(scope="module")
def made(dng: Dng, from_tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The output folder of a command, and the command without that setting."""
    folder, words = tmp_path_factory.mktemp("made"), ["predict", *from_tiny, "--data.num_samples=2"]
    dng(*words, f"--trainer.default_root_dir={folder}")
    return folder, words


@pytest.fixture
def sampled(made: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command, whose output is in the folder `out`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made[0], "out")
    return [*made[1], "--trainer.default_root_dir=out"]


def refusal(dng: Dng, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line in which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        dng(*words)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("dng: error: ")
    assert len(line) <= 400
    return line


@pytest.mark.parametrize("damage", DAMAGES, ids=repr)
@pytest.mark.parametrize("name", ["records/00000001.json", "unguided/records/00000001.json", "00000001.png"])
def test_an_image_that_is_damaged_or_has_a_damaged_record_is_sampled_again(
    name: str, damage: bytes, dng: Dng, sampled: list[str]
):
    images = {path: path.read_bytes() for path in Path("out").rglob("0*.png")}
    table = Path("out/labels.csv").read_text()
    Path("out", name).write_bytes(damage)
    dng(*sampled)
    assert {path: path.read_bytes() for path in Path("out").rglob("0*.png")} == images
    rows, before = (
        [line.split(",")[:3] for line in text.splitlines()] for text in (Path("out/labels.csv").read_text(), table)
    )
    assert rows == before


@pytest.mark.parametrize("damage", DAMAGES, ids=repr)
def test_damaged_hashes_of_the_inputs(damage: bytes, dng: Dng, sampled: list[str], capsys):
    Path("out/inputs.json").write_bytes(damage)
    assert "config.yaml or inputs.json is missing or damaged" in refusal(dng, capsys, *sampled)
    shutil.rmtree("out/records")
    for path in Path("out").glob("*.png"):
        path.unlink()
    assert "inputs.json is damaged" in refusal(dng, capsys, *sampled)


def test_a_damaged_last_checkpoint_is_not_resumed_from(dng: Dng, tmp_path: Path, capsys):
    settings = ["--config=digits.yaml", "--model.net.channels=[8]", "--trainer.limit_val_batches=1"]
    words = ["fit", *settings, f"--trainer.default_root_dir={tmp_path}"]
    dng(*words, "--trainer.max_steps=1")
    last = tmp_path / "checkpoints" / "last.ckpt"
    for damage, complaint in ((last.read_bytes()[:-1000], "is no checkpoint of a training"), (b"", "is empty")):
        last.write_bytes(damage)
        line = refusal(dng, capsys, *words, "--trainer.max_steps=2", "--ckpt_path=last")
        assert f"{last} {complaint}" in line


@pytest.mark.parametrize(
    "damage",
    [b"\xaa" * 100, b"method,n\nDNG,\0x", b"method,n,guidance\nDNG,5,{", b"method,forbidden_rate\nDNG,many"],
)
def test_damaged_results(damage: bytes, tmp_path: Path):
    path = tmp_path / "results.csv"
    path.write_bytes(damage)
    for read in (results_file.read, lambda path: results_file.Table(path, ["method"], ["method"]).rows()):
        with pytest.raises(SettingError, match=r"results\.csv is damaged .*: remove it"):
            read(path)


@pytest.mark.parametrize(
    "damage",
    [
        "method,kid,n\nDNG,0 1,5",
        "method,forbidden_rate\nDNG,0.1,7",
        "method,class_counts\nDNG,1 x",
        "method,n,forbidden_rate_low\nDNG,1,x",
        "a,b\n1,2",
        "method,forbidden_rate\nDNG,",
    ],
)
def test_results_with_other_cells(damage: str, tmp_path: Path):
    path = tmp_path / "results.csv"
    path.write_text(damage)
    with pytest.raises(SettingError, match=r"results\.csv is damaged .*: remove it"):
        results_file.Table(path, ["method", "forbidden_rate"], ["method"]).rows()


@pytest.mark.parametrize("damage", [b"0", b"", b"(lp0\n.", b"PK\x03\x04"])
def test_damaged_references(damage: bytes, tmp_path: Path):
    path = tmp_path / "zeros.pt"
    path.write_bytes(damage)
    with pytest.raises(SettingError, match=r"zeros\.pt is no \.pt file of one tensor"):
        read_references(str(path))


def test_a_table_of_images_with_too_many_cells(tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_text("file,label\n0.png,cat,1\n1.png,dog\n")
    with pytest.raises(SettingError, match="row 1 has other columns than file, label"):
        read_table(path)


@pytest.mark.parametrize("content", ["", "# a comment", "- 1", "digits", "null"])
def test_a_configuration_without_settings(content: str, tmp_path: Path):
    path = tmp_path / "case.yaml"
    path.write_text(content)
    with pytest.raises(SettingError, match="holds no settings"):
        check_yaml(path)
