"""What each setting of a guidance does to what it leaves and to the balance of the classes, the others kept fixed.

usage: python scripts/sensitivity.py FOLDER ... [--method METHOD] [--output PNG]

The folders are those of `dng test`, which may differ in their steps; see mnist_sensitivity.yaml.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from by_class import points
from matplotlib.figure import Figure

from dng_lightning import guidance
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.results_file import read
from dng_lightning.evaluation.study_figures import LABELS, plain_numbers
from dng_lightning.evaluation.tables import Rows
from dng_lightning.guidance.serialization import settings_json

Settings = Mapping[str, Any]


def lines(rows: Rows) -> dict[str, list[tuple[Any, Mapping[str, str]]]]:
    """For each setting that was varied by itself, its values and the rows with them, in order.

    They start from the row with the most neighbours, which differ from it in one setting alone.

    Args:
        rows: of one or several ``results.csv``, of one method; the steps count among its settings.

    Raises:
        SettingError: no two rows differ in one setting alone.
    """
    arguments = [{**_settings(json.loads(row["guidance"])), "steps": int(row["steps"])} for row in rows]
    neighbours = [[_only_difference(one, other) for other in arguments] for one in arguments]
    centre = max(range(len(rows)), key=lambda place: sum(map(bool, neighbours[place])), default=None)
    if centre is None or not any(neighbours[centre]):
        raise SettingError("no two rows differ in one setting alone: give the folders of such a study")
    found = {}
    for name in dict.fromkeys(filter(None, neighbours[centre])):
        places = [place for place, differs in enumerate(neighbours[centre]) if differs == name or place == centre]
        found[name] = sorted(
            ((arguments[place].get(name), rows[place]) for place in places), key=lambda pair: _order(pair[0])
        )
    return found


def figure(rows: Rows) -> Figure:
    """A column for each varied setting, the forbidden rate above and the divergence below, with 95 % intervals."""
    varied = lines(rows)
    figure = Figure(figsize=(max(5.0, 2.5 * len(varied)), 5.2), layout="constrained")
    grid = figure.subplots(2, len(varied), squeeze=False, sharex="col", sharey="row")
    for column, (name, own) in enumerate(varied.items()):
        ticks = [f"{value:g}" if _is_number(value) else str(value) for value, _ in own]
        for axes, measure in zip(grid[:, column], ("forbidden_rate", "kl_retained"), strict=True):
            points(axes, range(len(own)), [row for _, row in own], measure)
            axes.set_xticks(range(len(own)), ticks)
            axes.set_ylabel("" if column else fill(LABELS[measure], 28))
        grid[1, column].set_xlabel(name)
    grid[0, 0].set_ylim(bottom=0)
    grid[1, 0].set_yscale("log")
    plain_numbers(grid[1, 0])
    return figure


def _settings(own: Settings) -> dict[str, Any]:
    """All settings of a guidance and of what is inside; a table holds those that differ from the defaults."""
    kind = getattr(guidance, own.get("class", ""), None)
    usual = json.loads(settings_json(kind())) if kind else {}
    return dict(_flat(usual)) | dict(_flat(own))


def _flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield name, value.get("class")
            yield from _flat({key: inner for key, inner in value.items() if key != "class"})
        else:
            yield name, value


def _only_difference(one: Settings, other: Settings) -> str | None:
    """The name of the one setting in which they differ."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return names[0] if len(names) == 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, float, str]:
    return (True, value, "") if _is_number(value) else (False, 0.0, str(value))


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--method", default="DynamicNegativeGuidance")
    parser.add_argument("--output", type=Path, default=Path("sensitivity.png"))
    arguments = parser.parse_args(args)
    try:
        rows = [
            row
            for folder in arguments.folders
            for row in read(folder / "results.csv")
            if row["method"] == arguments.method
        ]
        figure(rows).savefig(arguments.output, dpi=150)
    except SettingError as error:
        parser.error(str(error))
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
