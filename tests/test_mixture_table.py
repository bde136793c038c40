"""The benchmark of exact mixtures runs, and its record holds what it compares."""

from dataclasses import replace
from pathlib import Path

import pytest
from exact import FIGURE, PROBLEMS, TWO, Problem, methods
from mixture_table import COLUMNS, INTRODUCTION, heading, row

from dng_lightning import guidance
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.attention_guidance import AttentionGuidance

BENCHMARKS = Path(__file__).resolve().parents[1] / "scripts" / "benchmarks"
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.title)


@each_problem
@pytest.mark.filterwarnings("ignore:a posterior tracked")
def test_every_row_can_be_measured(problem: Problem):
    tiny = replace(problem, count=16)
    for name, method in methods(problem).items():
        cells = row(tiny, name, method, steps=3).strip("| ").split(" | ")
        assert (cells[0], len(cells)) == (name, len(COLUMNS))


@each_problem
def test_the_record_has_every_row(problem: Problem):
    text = (BENCHMARKS / "mixture.md").read_text()
    assert text.startswith(INTRODUCTION)
    for steps in problem.steps:
        table = text.partition(f"\n{heading(problem, steps)}\n\n")[2].partition("\n\n")[0].splitlines()
        names = [line.split("|")[1].strip() for line in table]
        assert names == [COLUMNS[0], "---", "*the truth*", *methods(problem)]


def test_no_method_is_left_out():
    exported = [getattr(guidance, name) for name in guidance.__all__]
    label_space = {kind for kind in exported if issubclass(kind, Guidance) and kind is not Guidance}
    compared = [method.guidance for problem in PROBLEMS for method in methods(problem).values()]
    left_out = {kind for kind in label_space if not any(isinstance(shown, kind) for shown in compared)}
    assert all(issubclass(kind, AttentionGuidance) for kind in left_out)  # in the attention to a text
    assert guidance.NormalizedAttention in left_out


def test_the_figure_shows_rows_of_the_table():
    assert set(FIGURE) <= set(methods(TWO))
