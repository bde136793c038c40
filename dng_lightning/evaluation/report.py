"""Results as text."""

from collections.abc import Collection, Sequence

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
            cells.append(f"  {'█' * round(40 * share):>{size - 13}}{count:6d} {share:6.1%}")
        lines.append(f"{class_name + (' ✗' if label in forbidden else ''):>{width}}" + "".join(cells))
    shares = []
    for name, size in columns.items():
        count, total = sum(label in forbidden for label in labels[name]), len(labels[name])
        low, high = wilson_interval(count, total)
        shares.append(f"  {f'{count / total:.1%} [{low:.1%}, {high:.1%}]':>{size}}")
    return "\n".join([*lines, f"{'forbidden':>{width}}" + "".join(shares)])
