"""The benchmark that lays a study beside the authors' own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from authors_figure import METHODS, main, table

# DNG, negative prompting and Safe Latent Diffusion, each at two scales
LEFT = {0.006: (0.1, 0.2, 0.4), 0.012: (0.05, 0.1, 0.1)}


def rows() -> list[dict[str, str]]:
    return [
        {"method": method, "scale": str(scale), "guidance": f'{{"class": "{method}", "scale": {scale}}}'}
        | {"n": "1000", "forbidden": str(left), "kl": str(value), "fd_retained": str(10 * value)}
        for scale, (left, values) in enumerate(LEFT.items(), start=1)
        for method, value in zip(METHODS, values, strict=True)
    ]


def test_ratios_beside_the_authors():
    safest, one, beyond, *_ = table(rows()).splitlines()[2:]
    cells = [cell.strip() for cell in safest.strip("|").split("|")]
    assert cells[0] == "0.6%"
    assert cells[1::2] == ["0.64", "0.74", "0.52", "0.83"]  # 0.140 of 0.218, and so on
    assert cells[2::2] == ["0.50", "0.25", "0.50", "0.25"]
    ours = [float(cell) for cell in one.strip("|").split("|")[2::2]]
    assert ours[0] == pytest.approx(0.5, abs=0.01)
    assert 0.25 < ours[1] < 0.5  # between the two scales
    assert [cell.strip() for cell in beyond.strip("|").split("|")[2::2]] == ["–"] * 4  # no scale leaves so many


def test_results_that_are_not_there(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"no results at .*none\.csv: name a folder of dng test"):
        main(str(tmp_path / "none.csv"))
