"""Results as text."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dng_lightning.evaluation.class_balance import wilson_interval


def class_table(labels: dict[str, list[int]], class_names: Sequence[str], forbidden: Collection[int]) -> str:
    """Count of each class, one column per entry of ``labels``, and the forbidden rate with its interval.

    Args:
        labels: labels of the images by column name.
        class_names: name of each label.
        forbidden: forbidden labels.
    """
    table = [["", *labels]]
    for label, name in enumerate(class_names):
        counts = [(own.count(label), len(own)) for own in labels.values()]
        shares = [f"{'█' * min(9, round(36 * n / total))}{n:6d} {n / total:6.1%}" for n, total in counts]
        table.append([name + (" ✗" if label in forbidden else ""), *shares])
    hits = [(sum(label in forbidden for label in own), len(own)) for own in labels.values()]
    return _aligned([*table, ["forbidden", *(share_with_interval(n, total) for n, total in hits)]])


def share_with_interval(hits: int, total: int) -> str:
    """A share of images with its Wilson interval, in per cent."""
    low, high = wilson_interval(hits, total)
    return f"{hits / total:.1%} [{low:.1%}, {high:.1%}]"


def cost_table(costs: Mapping[str, tuple[int, float, float]]) -> str:
    """Cost of each method.

    Args:
        costs: number of images, network evaluations and seconds by method name.
    """
    table = [["", "network evaluations an image", "images a second, a device"]]
    table += [[name, f"{nfe / n:.4g}", f"{n / seconds:.3g}"] for name, (n, nfe, seconds) in costs.items()]
    return _aligned(table)


Rows = Sequence[Mapping[str, str]]
"""Rows of a ``results.csv``."""

REFERENCES = ("Unguided", "Rejection", "Retrained")  # points, not curves
SAFETY = (0.005, 0.01, 0.02)
COLUMNS = {  # heading: name in ``results.csv``, factor and format
    "scale": ("scale", 1, "g"),
    "N": ("n", 1, ".0f"),
    "forbidden, %": ("forbidden_rate", 100, ".2f"),
    "KL to uniform": ("kl_retained", 1, ".3f"),
    "KL to unguided": ("kl_unguided", 1, ".3f"),
    "Fréchet distance": ("fd_retained", 1, ".3f"),
    "KID ×1000": ("kid", 1000, ".2f"),
    "precision": ("precision", 1, ".3f"),
    "recall": ("recall", 1, ".3f"),
    "RMSE to unguided": ("rmse_to_unguided", 1, ".3f"),
    "NFE": ("nfe", 1, ".0f"),
    "prompt accuracy, %": ("prompt_accuracy", 100, ".1f"),
    "KL of unspecified attributes": ("kl_unspecified", 1, ".3f"),
}
MEASURES = ("kl_retained", "kl_unguided", "fd_retained", "rmse_to_unguided")  # in the table of equal safety
FOOTNOTE = "¹ To the balance of the unguided images that are not forbidden, which rejection would draw."


def results_table(rows: Rows) -> str:
    """The rows of a ``results.csv``, for the terminal."""
    return _aligned(_results(rows, ("forbidden_rate",)))


def safety_table(rows: Rows) -> str:
    """``equal_safety`` as a table; empty if no method has a curve."""
    return _aligned(_safety(rows))


def results_markdown(rows: Rows, notes: Sequence[str] = ()) -> str:
    """The rows of a ``results.csv`` and their values at equal safety as Markdown.

    Args:
        rows: rows of the CSV.
        notes: paragraphs before the tables.
    """
    paragraphs = [*notes, _markdown(_results(rows, [name for name, *_ in COLUMNS.values()])), FOOTNOTE]
    if found := _safety(rows):
        paragraphs += ["At equal safety (interpolated):", _markdown(found)]
    return "\n\n".join(paragraphs) + "\n"


def by_method(rows: Rows) -> dict[str, list[Mapping[str, str]]]:
    """Rows that differ only in scale, by the name of the method and, if there are several groups, their differences.

    The differences are the settings of the guidance, the steps, the seeds and the features.
    """
    several = [name for name in ("steps", "seeds", "features") if _differ(rows, name)]
    settings = [_without_scale(json.loads(row.get("guidance") or "{}"), row.get("scale")) for row in rows]
    found: dict[str, list[Mapping[str, str]]] = {}
    for row, own in zip(rows, settings, strict=True):
        siblings = [other for other, theirs in zip(settings, rows, strict=True) if theirs["method"] == row["method"]]
        parts = [row["method"], *_apart(own, siblings)]
        parts += [f"{row['steps']} steps" if n == "steps" else f"{n} {row[n]}" for n in several if row.get(n)]
        found.setdefault(", ".join(parts), []).append(row)
    return found


def _without_scale(settings: Mapping[str, Any], scale: str | None) -> dict[str, Any]:
    """The settings without the row's scale, which is a setting of the guidance or of its inner guidance."""
    if scale and "scale" in settings and float(settings["scale"]) == float(scale):
        return {name: value for name, value in settings.items() if name != "scale"}
    inner = settings.get("guidance")
    return dict(settings) | ({"guidance": _without_scale(inner, scale)} if isinstance(inner, Mapping) else {})


def _apart(own: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Settings in which the ``siblings`` differ; long values are replaced by a number."""
    for name, value in sorted(own.items()):
        values = [other.get(name) for other in siblings]
        if all(other == value for other in values):
            continue
        if isinstance(value, Mapping) and all(other is None or isinstance(other, Mapping) for other in values):
            usual = {"class": value.get("class")} if len(value) > 1 else {}  # default for siblings without this setting
            yield from _apart(value, [other or usual for other in values])
        else:
            text = "none" if value is None else str(value)
            yield f"{name} {text}" if len(text) < 20 else f"{name} #{values.index(value) + 1}"


def equal_safety(rows: Rows, levels: Sequence[float] = SAFETY) -> list[dict[str, Any]]:
    """Measures of each method at these forbidden rates, interpolated on its curve.

    The points of a method are interpolated linearly over the logarithm of the forbidden rate (with half an image in
    place of none). There is no value at rates outside the range of the method.
    """
    found: list[dict[str, Any]] = []
    for method, own in by_method(rows).items():
        if own[0]["method"] in REFERENCES:
            continue
        points = sorted(own, key=_rate)
        for level in levels:
            result: dict[str, Any] = {"method": method, "forbidden_rate": level}
            around = [pair for pair in pairwise(points) if _rate(pair[0]) <= level <= _rate(pair[1])]
            for name in MEASURES if around else ():
                before, after = around[0]
                if not (before.get(name) and after.get(name)):
                    continue
                width = math.log(_rate(after) / _rate(before))
                w = math.log(level / _rate(before)) / width if width else 0.0
                result[name] = (1 - w) * float(before[name]) + w * float(after[name])
            found.append(result)
    return found


def _results(rows: Rows, with_interval: Collection[str]) -> list[list[str]]:
    """Headings and cells; optional columns are shown only if they have a value."""
    shown = {
        h: c
        for h, c in COLUMNS.items()
        if c[0] not in ("prompt_accuracy", "kl_unspecified") or any(r.get(c[0]) for r in rows)
    }
    cells = [[_cell(row, *column, column[0] in with_interval) for column in shown.values()] for row in rows]
    return [["method", *shown], *([name, *own] for name, own in zip(_names(rows), cells, strict=True))]


def _safety(rows: Rows) -> list[list[str]]:
    found = [result for result in equal_safety(rows) if len(result) > 2]
    heads = [head for head, (name, *_) in COLUMNS.items() if name in MEASURES]
    table = [["method", "forbidden, %", *heads]] if found else []
    for result in found:
        values = [f"{result[name]:.3f}" if name in result else "–" for name in MEASURES]
        table.append([result["method"], f"{100 * result['forbidden_rate']:g}", *values])
    return table


def _cell(row: Mapping[str, str], name: str, factor: float, form: str, with_interval: bool) -> str:
    names = (name, f"{name}_low", f"{name}_high")
    value, low, high = (format(factor * float(row[n]), form) if row.get(n) else "" for n in names)
    return f"{value} ({low}–{high})" if with_interval and low else value or "–"


def _aligned(table: Sequence[Sequence[str]]) -> str:
    """A table with its first column left-aligned, and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ([f"{first:<{widths[0]}}", *map(str.rjust, cells, widths[1:])] for first, *cells in table)
    return "\n".join("  ".join(line) for line in lines)


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([head.replace("KL to unguided", "KL to unguided¹"), "|" + "---|" * len(table[0]), *lines])


def _names(rows: Rows) -> list[str]:
    """Method of each row, with the features if the rows have several, as these are not comparable."""
    several = _differ(rows, "features")
    return [f"{row['method']}, {row['features']}" if several and row.get("features") else row["method"] for row in rows]


def _differ(rows: Rows, name: str) -> bool:
    """Whether a column has several values; tables of earlier versions may lack the column."""
    return len({row[name] for row in rows if row.get(name)}) > 1


def _rate(row: Mapping[str, str]) -> float:
    return max(float(row["forbidden_rate"]), 0.5 / float(row["n"]))
