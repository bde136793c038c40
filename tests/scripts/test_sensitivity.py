"""One setting is drawn against what it does, from the tables of several folders."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import sensitivity
from matplotlib.container import ErrorbarContainer
from result_rows import points, row

from dng_lightning.data.pixels import from_png
from dng_lightning.errors import SettingError


def told(rate: float, steps: int = 50, **changed: Any) -> dict[str, str]:
    settings = {"class": "DNG", "scale": 1.0, "prior": 0.1, "cap": 0.99, "calibration": None} | changed
    return row("DNG", rate, 10 * rate, steps=steps, guidance=json.dumps(settings))


ROWS = [
    told(0.06, prior=0.4),
    told(0.05),
    told(0.04, prior=0.01),
    told(0.03, steps=1000),
    told(0.02, prior=0.01, cap=0.8),  # two settings away
    told(0.01, cap=0.8),
    told(0.07, calibration=[[0, 1, 2]]),
]


def rounded(bars: ErrorbarContainer) -> list[tuple[float, float]]:
    return [(x, round(y, 9)) for x, y in points(bars)]


def test_each_setting_is_varied_by_itself_around_the_middle():
    found = {
        name: [(value, float(row["forbidden_rate"])) for value, row in own]
        for name, own in sensitivity.lines(ROWS).items()
    }
    assert found == {
        "prior": [(0.01, 0.04), (0.1, 0.05), (0.4, 0.06)],
        "steps": [(50, 0.05), (1000, 0.03)],
        "cap": [(0.8, 0.01), (0.99, 0.05)],
        "calibration": [(None, 0.05), ([[0, 1, 2]], 0.07)],
    }


def test_rates_above_and_divergences_below():
    figure = sensitivity.figure(ROWS[:4])
    upper_prior, upper_steps, lower_prior, lower_steps = figure.axes
    (rates,), (divergences,) = upper_prior.containers, lower_prior.containers
    assert rounded(rates) == [(0, 4), (1, 5), (2, 6)]  # per cent, evenly spaced
    assert rounded(divergences) == [(0, 0.4), (1, 0.5), (2, 0.6)]
    (ends,) = rates.lines[2]
    assert ends.get_segments()[1][:, 1].tolist() == pytest.approx(
        [100 * float(ROWS[1][name]) for name in ("forbidden_rate_low", "forbidden_rate_high")]
    )
    assert [text.get_text() for text in lower_prior.get_xticklabels()] == ["0.01", "0.1", "0.4"]
    assert [text.get_text() for text in lower_steps.get_xticklabels()] == ["50", "1000"]
    assert (lower_prior.get_xlabel(), lower_steps.get_xlabel()) == ("prior", "steps")
    assert upper_prior.get_ylim() == upper_steps.get_ylim()


def table(folder: Path, rows: list[dict[str, str]]) -> Path:
    folder.mkdir()
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.mark.usefixtures("rendered")
def test_the_command_takes_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one, two = table(tmp_path / "a", [*ROWS[:3], row("Unguided", 0.1, 0.1)]), table(tmp_path / "b", ROWS[3:4])
    sensitivity.main([str(one), str(two), "--method", "DNG", "--output", str(tmp_path / "out.png")])
    assert capsys.readouterr().out == f"written to {tmp_path / 'out.png'}\n"
    assert from_png(tmp_path / "out.png").float().std() > 10


@pytest.mark.parametrize(("method", "folder"), [("NP", "a"), ("DNG", "nowhere")])
def test_a_table_that_is_no_such_study_is_one_line(method: str, folder: str, tmp_path: Path, capsys):
    table(tmp_path / "a", ROWS)
    with pytest.raises(SystemExit):
        sensitivity.main([str(tmp_path / folder), "--method", method])
    assert "error: no " in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SettingError, match="no two rows"):
        sensitivity.lines([ROWS[0], ROWS[4]])
