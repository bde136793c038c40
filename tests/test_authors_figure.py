"""The benchmark that lays a study beside the authors' own."""

import json
from pathlib import Path

import pytest
from authors_figure import METHODS, main, table

# DNG, negative prompting and Safe Latent Diffusion, each at two scales
LEFT = {0.006: (0.1, 0.2, 0.4), 0.012: (0.05, 0.1, 0.1)}


def rows(parity: bool = False) -> list[dict[str, str]]:
    """Two rows of each method; of DNG as the authors released it, with half the KL, on demand."""
    found = []
    for scale, (left, values) in enumerate(LEFT.items(), start=1):
        for method, value in zip(METHODS, values, strict=True):
            guidance = {"class": method, "scale": scale}
            row = {"method": method, "scale": str(scale), "n": "1000", "forbidden_rate": str(left)}
            found.append(
                row | {"guidance": json.dumps(guidance), "kl_retained": str(value), "fd_retained": str(10 * value)}
            )
            if parity and method == METHODS[0]:
                guidance |= {"parity": True}
                row |= {"method": f"{method}, parity", "guidance": json.dumps(guidance)}
                found.append(row | {"kl_retained": str(value / 2), "fd_retained": str(5 * value)})
    return found


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_ratios_beside_the_authors():
    theirs, ours, *_ = lines(table(rows()))
    assert theirs == ["0.6%", "theirs", "0.64", "0.74", "0.52", "0.83"]  # 0.140 of 0.218, and so on
    assert ours == ["", METHODS[0], "0.50", "0.25", "0.50", "0.25"]


def test_between_two_scales_it_is_interpolated():
    one = lines(table(rows()))[3]
    assert float(one[2]) == pytest.approx(0.5, abs=0.01)
    assert 0.25 < float(one[3]) < 0.5


def test_a_share_that_no_scale_leaves_has_theirs_alone():
    assert [line[1] for line in lines(table(rows()))[-3:]] == ["theirs"] * 3


def test_every_form_of_dng_has_its_line():
    _, ours, released, *_ = lines(table(rows(parity=True)))
    assert released[1] == "DynamicNegativeGuidance, parity"
    assert [float(cell) for cell in released[2:]] == pytest.approx([float(cell) / 2 for cell in ours[2:]], abs=0.01)


def test_results_that_are_not_there(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"no results at .*none\.csv: name a folder of dng test"):
        main(str(tmp_path / "none.csv"))
