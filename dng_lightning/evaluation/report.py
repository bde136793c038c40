"""Results as text."""

import json
from collections.abc import Collection, Mapping, Sequence

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


def results_table(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows of a ``results.csv``, for the terminal."""
    lines = [f"{'method':<26}{'settings':<52}{'n':>6}{'forbidden':>11}{'95 % interval':>17}{'KL':>8}{'TV':>7}"]
    for row in rows:
        settings = json.loads(row["guidance"])
        method = settings.pop("class")
        text = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (False, None))
        rate, low, high = (float(row[name]) for name in ("forbidden", "forbidden_low", "forbidden_high"))
        interval = f"[{low:.1%}, {high:.1%}]"
        kl, tv = float(row["kl"]), float(row["tv"])
        lines.append(f"{method:<26}{text[:50]:<52}{row['n']:>6}{rate:>11.2%}{interval:>17}{kl:>8.3f}{tv:>7.3f}")
    return "\n".join(lines)
