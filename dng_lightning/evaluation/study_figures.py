"""Figures of an evaluation: trade-offs, class histograms, calibration, samples."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
from torch import Tensor

from dng_lightning.evaluation.class_balance import PosteriorQuality, wilson_interval
from dng_lightning.evaluation.figures import framed_grid, named_classes
from dng_lightning.evaluation.tables import REFERENCES, Rows, by_method

TICKS = (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)  # of the forbidden rate
LABELS = {
    "forbidden_rate": "forbidden images, %",
    "kl_retained": "KL(uniform over retained ‖ generated), nats",
    "kl_unguided": "KL(unguided, retained ‖ generated), nats",
    "fd_retained": "Fréchet distance to retained real images",
}
OBEYED = "images that are what the prompt asks for"
MARKS = dict(zip(REFERENCES, "XD*", strict=True))


def tradeoff(rows: Rows) -> Figure:
    """Trade-offs of the forbidden rate: one line per method, and marks for the references.

    The vertical axes are KL to the uniform balance and to that of the unguided images, Fréchet distance, and prompt
    accuracy.


    Args:
        rows: rows of a ``results.csv``.
    """
    panels = [
        "kl_retained",
        *(name for name in ("kl_unguided", "fd_retained", "prompt_accuracy") if any(row.get(name) for row in rows)),
    ]
    methods = by_method(rows)
    curves = [name for name, own in methods.items() if own[0]["method"] not in REFERENCES]
    columns = max(1, 76 * len(panels) // (8 + max(map(len, methods))))  # as many as fit
    figure = Figure(figsize=(5.4 * len(panels), 4.4 + 0.2 * -(-len(methods) // columns)), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for method, own in methods.items():
            place = curves.index(method) if method in curves else None
            _curve(axes, [row for row in own if row.get(name)], name, method, place)
        axes.set_xscale("symlog", linthresh=0.002)
        axes.set_xlim(left=-0.0002)  # so that marks at 0 are not cut off
        ticks = [tick for tick in TICKS if tick <= axes.get_xlim()[1]]  # a tick beyond the limit would extend the axis
        axes.set_xticks(ticks, [f"{100 * tick:g}" for tick in ticks])
        if name == "prompt_accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        else:
            axes.set_yscale("log")
            plain_numbers(axes)
        axes.set_xlabel(LABELS["forbidden_rate"])
        axes.set_ylabel(LABELS.get(name, OBEYED))
        axes.grid(alpha=0.3)
    handles = figure.axes[0].get_legend_handles_labels()  # of kl_retained, which every row has
    figure.legend(*handles, fontsize="small", loc="outside lower center", ncols=columns)
    return figure


def plain_numbers(axes: Axes) -> None:
    """Label a logarithmic vertical axis with numbers such as 0.5 and 2 instead of powers of ten."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _curve(axes: Axes, rows: Rows, measure: str, method: str, place: int | None) -> None:
    """Draw a line, coloured by its index ``place``; None draws the black mark of a reference."""
    if not rows:
        return
    rows = sorted(rows, key=lambda row: float(row["forbidden_rate"]))
    x, y = ([float(row[name]) for row in rows] for name in ("forbidden_rate", measure))
    if place is None:
        style = {"marker": MARKS[rows[0]["method"]], "ms": 9, "ls": "none", "color": "black"}
    else:
        style = _style(place)
    _with_bars(axes, x, y, errors(rows, measure), errors(rows, "forbidden_rate"), label=method, **style)


def _style(place: int) -> dict[str, Any]:
    """The line and the points of the curve at an index."""
    return {"marker": "o", "ms": 4, "ls": ("-", "--", ":")[place // 10 % 3], "color": f"C{place % 10}"}


def _with_bars(axes: Axes, *values: Any, **style: Any) -> None:
    """``Axes.errorbar`` with faint bars, so that the points stand out."""
    for ends in axes.errorbar(*values, elinewidth=0.7, **style).lines[2]:
        ends.set_alpha(0.45)


def errors(rows: Rows, measure: str) -> list[list[float]]:
    """Lengths of a measure's intervals below and above its values; 0 for rows without an interval."""
    names = (f"{measure}_low", measure, f"{measure}_high")
    low, middle, high = ([float(row[name] or row[measure]) for row in rows] for name in names)
    return [[max(0.0, b - a) for a, b in zip(*ends, strict=True)] for ends in ((low, middle), (middle, high))]


def class_histograms(rows: Rows, class_names: Sequence[str], forbidden: Collection[int]) -> Figure:
    """Share of each class, one small chart per row, sorted by method and scale; forbidden classes are red."""
    columns = 3 if len(rows) <= 9 else 4
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(4 * columns, 2.1 * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten().tolist()
    charted = [(name, row) for name, own in by_method(rows).items() for row in sorted(own, key=_scale)]
    for axes, (name, row) in zip(grid, charted, strict=False):
        counts = torch.tensor([int(count) for count in row["class_counts"].split()])
        shares = (100 * counts / counts.sum()).tolist()
        colours = ["tab:red" if label in forbidden else "tab:blue" for label in range(len(shares))]
        axes.bar(range(len(shares)), shares, color=colours)
        axes.axhline(100 / (len(class_names) - len(forbidden)), color="black", lw=0.9, ls="--")
        named = named_classes(class_names, forbidden)
        axes.set_xticks(named, [class_names[label] for label in named], fontsize="x-small")
        scale = f" {row['scale']}" if row["scale"] else ""
        title = f"{name}{scale}: {float(row['forbidden_rate']):.1%} forbidden"
        axes.set_title(textwrap.fill(title, 50), fontsize="small")
    for axes in grid[len(rows) :]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel("% of images")
    figure.suptitle("red: forbidden; dashed: even over the retained classes", fontsize="small")
    return figure


def _scale(row: Mapping[str, str]) -> float:
    return float(row["scale"] or 0)


def calibration(qualities: Mapping[str, PosteriorQuality]) -> Figure:
    """Share of forbidden images, with its interval, against the tracked posterior; one line per posterior."""
    figure = Figure(figsize=(5.0, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":", label="calibrated")
    for place, (name, quality) in enumerate(qualities.items()):
        predicted, shares, sizes = zip(*quality.curve, strict=True)
        pairs = list(zip(shares, sizes, strict=True))
        bounds = torch.tensor([wilson_interval(round(share * size), size) for share, size in pairs]).T
        bars = (bounds - torch.tensor(shares)).abs().tolist()
        label = textwrap.fill(f"{name}, {sum(sizes):,} images", 60)  # the settings of a posterior may be long
        _with_bars(axes, predicted, shares, bars, label=label, **_style(place))
    axes.set_aspect("equal")
    axes.set_xlabel("posterior of the forbidden, tracked to the end")
    axes.set_ylabel("share that became forbidden, 95 % interval")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="x-small")
    return figure


def class_entropy(times: Sequence[float], entropy: Tensor, decisive: tuple[int, int]) -> Figure:
    """Class entropy and its rate along the chain.

    Args:
        times: t / T of each step, falling, (S,).
        entropy: in nats, (S,).
        decisive: the first and the last of the steps that decide the class.
    """
    figure = Figure(figsize=(5.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(times, entropy, color="C0", label="class entropy, nats")
    falls = zip(pairwise(entropy.tolist()), pairwise(times), strict=True)
    axes.plot(times[:-1], [(a - b) / (t - s) for (a, b), (t, s) in falls], color="C1", label="its fall per unit of t/T")
    first, last = (times[step] for step in decisive)
    axes.axvspan(last, first, alpha=0.15, color="grey", label=f"90 % of the fall: t/T of {first:.2g} to {last:.2g}")
    axes.invert_xaxis()
    axes.set_xlabel("t/T, from noise to image")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="small")
    return figure


def sample_rows(samples: Sequence[tuple[str, Tensor, Sequence[bool]]]) -> Figure:
    """Images of the same seeds, one row per method; forbidden images have a frame.

    Args:
        samples: name, uint8 images (N, C, H, W), and which images are forbidden, for each row.
    """
    grids = [framed_grid(images, marked, columns=len(images)) for _, images, marked in samples]
    longest = max(grids, key=lambda grid: grid.shape[2])
    line = 0.47  # inches
    names, across = 0.07 * max(len(name) for name, _, _ in samples) + 0.1, line * longest.shape[2] / longest.shape[1]
    width, height = names + across, line * len(samples)
    figure = Figure(figsize=(width, height))
    for place, ((name, _, _), grid) in enumerate(zip(samples, grids, strict=True), 1):
        part = across * grid.shape[2] / longest.shape[2]
        axes = figure.add_axes((names / width, 1 - place / len(samples), part / width, 0.94 / len(samples)))
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_yticks([])
        axes.set_xticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
        for side in axes.spines.values():
            side.set_visible(False)
    return figure
