"""The tables of a study that removes each class once become one table and one figure."""

import csv
from pathlib import Path
from typing import Any

import by_class
import pytest
import yaml
from result_rows import row
from test_sensitivity import table

from dng_lightning.data.pixels import from_png


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Of two digits, named by a word and by a list; one image in a hundred more is left of the second."""
    found = []
    for number, forbidden in ((0, "0"), (1, [7, 8])):
        rows = [row("Unguided", 0.1, 0.2, 3), row("NP", 0.01 * (number + 1), 0.1, 2 if number else "")]
        found.append(table(tmp_path / f"digits-{number}", rows))
        config: dict[str, Any] = {"model": {"class_path": "GuidedSampler", "init_args": {"forbidden": forbidden}}}
        (found[-1] / "config.yaml").write_text(yaml.safe_dump(config))
    return found


@pytest.mark.usefixtures("rendered")
def test_one_table_and_one_figure(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    by_class.main([*map(str, folders), "--output", str(tmp_path / "all")])
    rows = list(csv.DictReader((tmp_path / "all.csv").open(newline="")))
    assert [(r["removed"], r["method"], r["forbidden_rate"]) for r in rows] == [
        ("0", "Unguided", "0.1"),
        ("0", "NP", "0.01"),
        ("7 8", "Unguided", "0.1"),
        ("7 8", "NP", "0.02"),
    ]
    assert from_png(tmp_path / "all.png").float().std() > 10
    assert "all.csv, " in capsys.readouterr().out
    assert (tmp_path / "all.md").read_text() == by_class.matched(rows)


def test_tables_of_an_earlier_version_lack_columns(folders: list[Path], tmp_path: Path):
    new = table(tmp_path / "new", [row("NP", 0.01, 0.1, 2, features="mnist-classifier")])
    (new / "results.csv").replace(folders[1] / "results.csv")
    by_class.main([*map(str, folders), "--output", str(tmp_path / "new" / "of 1.0")])
    rows = list(csv.DictReader((tmp_path / "new" / "of 1.0.csv").open(newline="")))
    assert "Fréchet distance (features of mnist-classifier), where" in (tmp_path / "new" / "of 1.0.md").read_text()
    assert [(r["method"], r["features"]) for r in rows] == [("Unguided", ""), ("NP", ""), ("NP", "mnist-classifier")]


def test_methods_stand_side_by_side_in_each_class(folders: list[Path]):
    rates, _, distances = by_class.figure(by_class.collected(folders)).axes
    unguided, np = rates.containers
    assert np.get_label() == "NP"
    x, y = np.lines[0].get_data()
    assert list(y) == pytest.approx([1, 2])
    assert [round(float(value)) for value in x] == [0, 1]
    assert min(abs(float(a) - float(b)) for a, b in zip(x, unguided.lines[0].get_xdata(), strict=True)) > 0.1
    assert len(distances.containers[1].lines[0].get_xdata()) == 1  # the first has none
    assert [text.get_text() for text in distances.get_xticklabels()] == ["0", "7 8"]


def test_methods_at_equal_safety_class_by_class(tmp_path: Path):
    """One crosses 1 % halfway (in the logarithm) between two scales, the other is never as safe."""
    rows = [
        {"removed": "4", **row("NP", rate, kl, distance)} for rate, kl, distance in ((0.02, 0.1, 3), (0.005, 0.3, 5))
    ]
    rows += [{"removed": "4", **row("DNG", 0.05, 0.2, 2)}]
    *_, head, _, found = by_class.matched(rows).splitlines()
    cells = dict(zip(head.split(" | "), found.split(" | "), strict=True))
    assert (cells["NP, 1 %"], cells["NP, 0.5 %"], cells["DNG, 1 %"]) == ("0.200 / 4.00", "0.300 / 5.00", "–")
    assert by_class.matched(rows, [0.02]).splitlines()[-1] == "| 4 | 0.100 / 3.00 | – |"
    with_own = by_class.matched([row | {"kl_unguided": "0.05"} for row in rows], [0.02])
    assert with_own.startswith("KL to uniform over the retained classes / KL to unguided / Fréchet")
    assert with_own.splitlines()[-1] == "| 4 | 0.100 / 0.050 / 3.00 | – |"


def test_other_shares(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    told = [*map(str, folders), "--output", str(tmp_path / "all"), "--forbidden-rates"]
    by_class.main([*told, "0.01", "0.015"])
    assert "\n| removed | NP, 1 % | NP, 1.5 % |\n" in (tmp_path / "all.md").read_text()
    with pytest.raises(SystemExit):
        by_class.main([*told, "1"])
    assert "invalid share value: '1'" in capsys.readouterr().err


@pytest.mark.parametrize("config", [None, "", "[1]", "model: {init_args: {net: UNet}}", "model: {"])
def test_a_folder_of_something_else_is_one_line(config: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(SystemExit):
        by_class.main([str(tmp_path)])
    assert "holds no config.yaml of dng test" in capsys.readouterr().err
