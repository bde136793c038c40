"""One table and one figure of a study that removes each class once, a folder of `dng test` a class.

usage: python scripts/by_class.py FOLDER ... [--forbidden-rates RATE ...] [--output NAME]

Writes NAME.csv, NAME.md (the methods at equal safety) and NAME.png; see mnist_all_digits.yaml.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.results_file import read
from dng_lightning.evaluation.study_figures import LABELS, MARKS, errors, plain_numbers
from dng_lightning.evaluation.tables import SAFETY, Rows, by_method, equal_safety


def collected(folders: Sequence[Path]) -> list[dict[str, str]]:
    """The rows of all folders, each with the class that was ``removed``, as its ``config.yaml`` names it.

    Raises:
        SettingError: a folder has no results, or no configuration of ``dng test``.
    """
    rows = []
    for folder in folders:
        try:
            forbidden = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["forbidden"]
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise SettingError(f"{folder} holds no config.yaml of dng test: name its folder") from error
        removed = " ".join(map(str, forbidden)) if isinstance(forbidden, list) else str(forbidden)
        rows += [{"removed": removed, **row} for row in read(folder / "results.csv")]
    return rows


def figure(rows: Rows) -> Figure:
    """Forbidden rate, divergences and Fréchet distance of each method, with 95 % intervals, class beside class."""
    classes = list(dict.fromkeys(row["removed"] for row in rows))
    methods = by_method(rows)
    labels = {measure: label for measure, label in LABELS.items() if any(row.get(measure) for row in rows)}
    width = max(8.0, 0.9 * len(classes))
    figure = Figure(figsize=(width, 2.5 * len(labels)), layout="constrained")
    grid = figure.subplots(len(labels), 1, sharex=True)
    for axes, (measure, label) in zip(grid, labels.items(), strict=True):
        for place, (name, own) in enumerate(methods.items()):
            measured = [row for row in own if row.get(measure)]
            aside = 0.7 * ((place + 0.5) / len(methods) - 0.5)  # of the middle of the class
            x = [classes.index(row["removed"]) + aside for row in measured]
            look, colour = (MARKS[name], "black") if name in MARKS else ("o", f"C{place % 10}")
            points(axes, x, measured, measure, look, colour, name)
        for edge in range(1, len(classes)):
            axes.axvline(edge - 0.5, color="grey", lw=0.5)
        axes.set_ylabel(fill(label, 28), fontsize="small")
    grid[0].set_yscale("symlog", linthresh=1)
    grid[0].set_ylim(bottom=-0.05)
    ticks = [tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= grid[0].get_ylim()[1]]
    grid[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    for axes in grid[1:]:
        axes.set_yscale("log")
        plain_numbers(axes)
    grid[-1].set_xticks(range(len(classes)), [fill(name, 12) for name in classes])
    grid[-1].set_xlabel("removed class")
    columns = max(1, int(14 * width) // (8 + max(map(len, methods))))  # as many as there is room for
    handles = grid[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize="small", loc="outside lower center", ncols=columns)
    return figure


def points(
    axes: Axes, x: Sequence[float], rows: Rows, measure: str, look: str = "o-", colour: str = "C0", label: str = ""
) -> None:
    """Values of a measure with their intervals; a forbidden rate in per cent."""
    factor = 100 if measure == "forbidden_rate" else 1
    bounds = [[factor * error for error in side] for side in errors(rows, measure)]
    values = [factor * float(row[measure]) for row in rows]
    axes.errorbar(x, values, bounds, fmt=look, ms=5, color=colour, elinewidth=0.8, label=label or "_")
    axes.grid(axis="y", alpha=0.3)


def matched(rows: Rows, safety: Sequence[float] = SAFETY) -> str:
    """Markdown: KL and Fréchet distance of each method where it leaves these shares, each in (0, 1), class by class.

    Read off each method's curve over its scales, as ``tables.equal_safety`` does; a dash where its scales do not reach.
    """
    classes = list(dict.fromkeys(row["removed"] for row in rows))
    found = {name: equal_safety([row for row in rows if row["removed"] == name], safety) for name in classes}
    methods = list(dict.fromkeys(result["method"] for own in found.values() for result in own))
    features = ", ".join(dict.fromkeys(row["features"] for row in rows if row.get("features")))
    distance = f"Fréchet distance (features of {features})" if features else "Fréchet distance"
    own = "KL to unguided / " if any(row.get("kl_unguided") for row in rows) else ""
    lines = [f"KL to uniform over the retained classes / {own}{distance}, where this share is still forbidden:", ""]
    heads = [f"{method}, {100 * level:g} %" for level in safety for method in methods]
    lines += [f"| removed | {' | '.join(heads)} |", "|" + "---|" * (1 + len(heads))]
    for name, results in found.items():
        values = {(result["method"], result["forbidden_rate"]): result for result in results}
        cells = [_cell(values.get((method, level), {})) for level in safety for method in methods]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def share(text: str) -> float:
    """A number in (0, 1); argparse makes one line of the error."""
    if not 0 < float(text) < 1:
        raise ValueError
    return float(text)


def _cell(result: Mapping[str, Any]) -> str:
    shown = {"kl_retained": 3, "kl_unguided": 3, "fd_retained": 2}
    numbers = [f"{result[name]:.{digits}f}" for name, digits in shown.items() if name in result]
    return " / ".join(numbers) or "–"


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument(
        "--forbidden-rates", nargs="+", type=share, default=SAFETY, help="shares to compare at (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("by-class"))
    arguments = parser.parse_args(args)
    try:
        rows = collected(arguments.folders)
    except SettingError as error:
        parser.error(str(error))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    table, text, picture = (
        arguments.output.with_name(f"{arguments.output.name}.{kind}") for kind in ("csv", "md", "png")
    )
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))  # of any version
        writer.writeheader()
        writer.writerows(rows)
    text.write_text(matched(rows, arguments.forbidden_rates))
    figure(rows).savefig(picture, dpi=150)
    print(f"{text.read_text()}\nwritten to {table}, {text}, {picture}")


if __name__ == "__main__":
    main()
