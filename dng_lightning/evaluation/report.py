"""Results as text."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dng_lightning.evaluation.metrics import wilson_interval


def class_table(labels: dict[str, list[int]], class_names: Sequence[str], forbidden: Collection[int]) -> str:
    """How often each class was drawn, one column a row of ``labels``, and the forbidden share with its interval.

    Args:
        labels: for each column's name the labels of its images.
        class_names: name of each label.
        forbidden: labels to be avoided.
    """
    width = max(11, *(len(name) for name in class_names))
    columns = {name: max(len(name), 22) for name in labels}
    lines = [" " * width + "".join(f"  {name:>{size}}" for name, size in columns.items())]
    for label, class_name in enumerate(class_names):
        cells = []
        for name, size in columns.items():
            count = labels[name].count(label)
            share = count / len(labels[name])
            cells.append(f"  {'█' * min(9, round(36 * share)):>{size - 13}}{count:6d} {share:6.1%}")
        lines.append(f"{class_name + (' ✗' if label in forbidden else ''):>{width}}" + "".join(cells))
    shares = []
    for name, size in columns.items():
        count, total = sum(label in forbidden for label in labels[name]), len(labels[name])
        low, high = wilson_interval(count, total)
        shares.append(f"  {f'{count / total:.1%} [{low:.1%}, {high:.1%}]':>{size}}")
    return "\n".join([*lines, f"{'forbidden':>{width}}" + "".join(shares)])


def cost_table(costs: Mapping[str, tuple[int, float, float]]) -> str:
    """What each method cost.

    Args:
        costs: for each method's name the images that it drew, and the network evaluations and seconds that it took.
    """
    width = max(11, *map(len, costs))
    lines = [" " * width + f"{'network evaluations an image':>30}{'images a second, a device':>28}"]
    for name, (images, evaluations, seconds) in costs.items():
        lines.append(f"{name:>{width}}{evaluations / images:>30.4g}{images / seconds:>28.3g}")
    return "\n".join(lines)


Rows = Sequence[Mapping[str, str]]
"""Of a ``results.csv``."""

REFERENCES = ("Unguided", "Rejection", "Retrained")  # points, not curves
SAFETY = (0.005, 0.01, 0.02)
MEASURES = {"kl": "KL", "kl_own": "KL own", "fd_retained": "Fréchet", "invasiveness": "moved"}


def results_table(rows: Rows) -> str:
    """The rows of a ``results.csv``, for the terminal."""
    names = _names(rows)
    wide = max([28, *(len(name) + 1 for name in names)])
    head = f"{'method':<{wide}}{'scale':>7}{'n':>7}{'forbidden':>11}{'95 % interval':>17}{'KL':>8}{'KL own':>8}"
    lines = [head + f"{'Fréchet':>10}{'precision':>11}{'recall':>8}{'moved':>8}{'evals':>8}"]
    for name, row in zip(names, rows, strict=True):
        bounds = [_number(row, f"forbidden_{side}", ".1%") for side in ("low", "high")]
        interval = f"[{', '.join(bounds)}]" if row.get("forbidden_low") else "–"
        text = f"{name:<{wide}}{row['scale'] or '–':>7}{row['n']:>7}"
        text += f"{float(row['forbidden']):>11.2%}{interval:>17}"
        text += f"{float(row['kl']):>8.3f}{_number(row, 'kl_own', '.3f'):>8}"
        text += f"{_number(row, 'fd_retained', '.3f'):>10}{_number(row, 'precision', '.3f'):>11}"
        text += f"{_number(row, 'recall', '.3f'):>8}{_number(row, 'invasiveness', '.3f'):>8}"
        lines.append(text + f"{float(row['evaluations']):>8.0f}")
    if any(row.get("obeyed") for row in rows):
        lines = [
            f"{line}{cell:>9}" for line, cell in zip(lines, ["obeyed", *(_obeyed(row) for row in rows)], strict=True)
        ]
    return "\n".join(lines)


def by_method(rows: Rows) -> dict[str, list[Mapping[str, str]]]:
    """The rows that differ in scale alone, under their method's name and, where it has several, what tells them apart.

    Those are the settings of its guidance, the steps, the seeds, and the features that it was measured in.
    """
    several = [name for name in ("steps", "seeds", "features") if _differ(rows, name)]
    settings = [_without_scale(json.loads(row.get("guidance") or "{}"), row.get("scale")) for row in rows]
    found: dict[str, list[Mapping[str, str]]] = {}
    for row, own in zip(rows, settings, strict=True):
        siblings = [other for other, theirs in zip(settings, rows, strict=True) if theirs["method"] == row["method"]]
        told = [row["method"], *_apart(own, siblings)]
        told += [f"{row['steps']} steps" if n == "steps" else f"{n} {row[n]}" for n in several if row.get(n)]
        found.setdefault(", ".join(told), []).append(row)
    return found


def _without_scale(settings: Mapping[str, Any], scale: str | None) -> dict[str, Any]:
    """The settings without the row's scale, which is that of the guidance or of the one inside."""
    if scale and "scale" in settings and float(settings["scale"]) == float(scale):
        return {name: value for name, value in settings.items() if name != "scale"}
    inner = settings.get("guidance")
    return dict(settings) | ({"guidance": _without_scale(inner, scale)} if isinstance(inner, Mapping) else {})


def _apart(own: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is unusual of the settings in which siblings differ; a value too long to be shown by its number."""
    for name, value in own.items():
        values = [other.get(name) for other in siblings]
        if all(other == value for other in values):
            continue
        inside = [other for other in values if isinstance(other, Mapping)]
        if isinstance(value, Mapping) and len(inside) == len(values):
            yield from _apart(value, inside)
        else:
            text = "none" if value is None else str(value)
            yield f"{name} {text}" if len(text) < 20 else f"{name} #{values.index(value) + 1}"


def equal_safety(rows: Rows, levels: Sequence[float] = SAFETY) -> list[dict[str, Any]]:
    """Each method's measures where it leaves these shares of forbidden images, read off its curve.

    The points of a method are joined by lines over the logarithm of the forbidden rate (half an image standing in for
    none). Where a method is never as safe, or its least push is safer already, there is no value.
    """
    found: list[dict[str, Any]] = []
    for method, own in by_method(rows).items():
        if own[0]["method"] in REFERENCES:
            continue
        points = sorted(own, key=_rate)
        for level in levels:
            result: dict[str, Any] = {"method": method, "forbidden": level}
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


def safety_table(rows: Rows) -> str:
    """``equal_safety`` as a table, methods down and levels across; empty if no method has a curve."""
    found = equal_safety(rows)
    methods = list(dict.fromkeys(result["method"] for result in found if len(result) > 2))
    if not methods:
        return ""
    wide = max([28, *(len(method) + 1 for method in methods)])
    levels = "".join(f"{f'at {level:.1%} forbidden':>{9 * len(MEASURES)}}" for level in SAFETY)
    names = "".join(f"{name:>9}" for name in MEASURES.values())
    lines = [f"{'':<{wide}}{levels}", f"{'equal safety':<{wide}}{names * len(SAFETY)}"]
    for method in methods:
        cells = ""
        for level in SAFETY:
            (result,) = [r for r in found if r["method"] == method and r["forbidden"] == level]
            cells += "".join(f"{result[name]:>9.3f}" if name in result else f"{'–':>9}" for name in MEASURES)
        lines.append(f"{method:<{wide}}{cells}")
    return "\n".join(lines)


def results_markdown(rows: Rows, notes: Sequence[str] = ()) -> str:
    """The rows of a ``results.csv`` and their values at equal safety as Markdown.

    Args:
        rows: of the CSV.
        notes: paragraphs before the tables.
    """
    lines = [*(f"{note}\n" for note in notes)]
    heads = ["method", "scale", "N", "forbidden, %", "KL to even", "KL to own¹", "Fréchet distance", "KID ×1000"]
    in_words = any(row.get("obeyed") for row in rows)
    heads += ["precision", "recall", "moved", "evaluations"]
    heads += ["prompt obeyed", "KL of what was left open"] if in_words else []
    lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, row in zip(_names(rows), rows, strict=True):
        bounds = [100 * float(row[name]) for name in ("forbidden_low", "forbidden_high") if row.get(name)]
        rate = f"{100 * float(row['forbidden']):.2f}" + (f" ({bounds[0]:.2f}–{bounds[1]:.2f})" if bounds else "")
        kl, own, fd = (_with_interval(row, name) for name in ("kl", "kl_own", "fd_retained"))
        kid = f"{1000 * float(row['kid']):.2f}" if row.get("kid") else "–"
        cells = [name, row["scale"] or "–", row["n"], rate, kl, own, fd, kid]
        cells += [_number(row, measure, ".3f") for measure in ("precision", "recall", "invasiveness")]
        cells.append(f"{float(row['evaluations']):.0f}")
        cells += [_obeyed(row), _number(row, "kl_open", ".3f")] if in_words else []
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "¹ To the balance of the unguided images that are not forbidden, which rejection would draw."]
    found = [result for result in equal_safety(rows) if len(result) > 2]
    if found:
        heads = ["method", "forbidden, %", "KL to even", "KL to own¹", "Fréchet distance", "moved"]
        lines += ["", "At equal safety (interpolated):", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for result in found:
            values = [f"{result[name]:.3f}" if name in result else "–" for name in MEASURES]
            lines.append(f"| {result['method']} | {100 * result['forbidden']:g} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def _with_interval(row: Mapping[str, str], name: str) -> str:
    low, high = (f"{name.removesuffix('_retained')}_{side}" for side in ("low", "high"))
    bounds = f" ({float(row[low]):.3f}–{float(row[high]):.3f})" if row.get(low) else ""
    return _number(row, name, ".3f") + bounds


def _names(rows: Rows) -> list[str]:
    """Each row's method; where they were measured in several features also in which, as these do not compare."""
    told = _differ(rows, "features")
    return [f"{row['method']}, {row['features']}" if told and row.get("features") else row["method"] for row in rows]


def _differ(rows: Rows, name: str) -> bool:
    """Whether a column has several values; tables of earlier versions may lack it."""
    return len({row[name] for row in rows if row.get(name)}) > 1


def _obeyed(row: Mapping[str, str]) -> str:
    return _number(row, "obeyed", ".1%")


def _rate(row: Mapping[str, str]) -> float:
    return max(float(row["forbidden"]), 0.5 / float(row["n"]))


def _number(row: Mapping[str, str], name: str, form: str) -> str:
    return format(float(row[name]), form) if row.get(name) else "–"
