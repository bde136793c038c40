"""The benchmark of samplers runs, and its record holds what it compares."""

import math

import pytest
from sampler_table import FIGURE, INTRODUCTION, PATHS, ROWS, STEPS, measured
from test_mixture_table import BENCHMARKS


@pytest.mark.filterwarnings("ignore:a posterior tracked")
@pytest.mark.parametrize("path", PATHS)
def test_every_row_can_be_measured(path: str):
    for name, row in ROWS.items():
        cell = measured(path, name, steps=4, count=64)
        assert cell.left[1] <= cell.left[0] <= cell.left[2]
        assert all(math.isfinite(value) for value in (*cell.width, *cell.displacement))
        assert 0 < cell.displacement[1] <= cell.displacement[0] <= cell.displacement[2]
        assert cell.evaluations == 8 * (2 if row.posterior.needs().divergence else 1)


def test_the_record_has_every_row():
    text = (BENCHMARKS / "samplers.md").read_text()
    assert text.startswith(INTRODUCTION)
    for path in PATHS:
        tables = text.partition(f"\n## {path}\n\n")[2].partition("\n## ")[0].strip().split("\n\n")
        assert len(tables) == 4
        for table in tables:
            heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
            assert heading[1:] == [f"{steps} steps" for steps in STEPS]
            assert [row[0] for row in rows] == list(ROWS)
    assert set(FIGURE) <= set(ROWS)
