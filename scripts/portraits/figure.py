"""README's figure: drawn people of three methods from the same seeds, and the skin tones of many more.

usage: python scripts/portraits/figure.py SAMPLES RESULTS.csv OUTPUT.png

SAMPLES is the folder that `dng predict --config portraits_predict.yaml` writes, RESULTS.csv the table of
`dng test --config portraits_related.yaml`, which has the same settings among its rows.
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dng_lightning.data.pixels import from_png
from dng_lightning.evaluation.class_balance import wilson_interval
from dng_lightning.evaluation.figures import framed_grid
from scripts.portraits.attributes import PortraitAttributes
from scripts.portraits.drawing import COLOURS

# method and scale in the table, folder of its images, title
METHODS = (
    ("Unguided", "", "unguided", "no guidance"),
    ("PositiveAndNegative(NegativePrompting)", "0.75", "*NegativePrompting*", "negative prompting"),
    ("PositiveAndNegative(DynamicNegativeGuidance)", "3", ".", "Dynamic Negative Guidance (DNG)"),
)
SHOWN, FORBIDDEN = 8, PortraitAttributes.values["eyes"].index("sunglasses")


def portraits_figure(samples: Path, table: Sequence[dict[str, str]]) -> Figure:
    """Eight images of every method, forbidden ones in a frame, and bars of the skin tones.

    Args:
        samples: folder of the images.
        table: rows of ``results.csv``.
    """
    rows = [
        next(row for row in table if (row["method"], row["scale"]) == (method, scale)) for method, scale, *_ in METHODS
    ]
    titles = [
        f"{title}: {100 * float(row['forbidden_rate']):.1f} % sunglasses"
        for (*_, title), row in zip(METHODS, rows, strict=True)
    ]
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    *panels, bars = figure.subplots(4, height_ratios=[1, 1, 1, 1.7])
    for axes, (*_, pattern, _), title in zip(panels, METHODS, titles, strict=True):
        (folder,) = samples.glob(pattern) if pattern != "." else [samples]
        records = [json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))[:SHOWN]]
        images = torch.stack([from_png(folder / f"{record['seed']:08d}.png") for record in records])
        grid = framed_grid(images, [record["label"] == FORBIDDEN for record in records])
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="antialiased")
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_axis_off()
    skin_bars(bars, rows)
    return figure


def skin_bars(axes: Axes, rows: Sequence[dict[str, str]]) -> None:
    """For every method a group of bars, one for each skin tone in its colour, with 95 % intervals."""
    tones = PortraitAttributes.values["skin"]
    places = np.arange(len(rows))
    for number, tone in enumerate(tones):
        shares, counts = [float(row[f"skin_{tone}"]) for row in rows], [int(row["n"]) for row in rows]
        ends = [wilson_interval(round(share * n), n) for share, n in zip(shares, counts, strict=True)]
        errors = np.abs(np.array(ends).T - shares)
        colour = [part / 255 for part in COLOURS["skin"][tone]]
        bars: dict[str, Any] = {
            "color": colour,
            "edgecolor": "black",
            "linewidth": 0.6,
            "yerr": errors,
            "ecolor": "grey",
        }
        axes.bar(places + 0.2 * (number - 1.5), shares, 0.2, label=tone, **bars)
    axes.set_xticks(places, [title for *_, title in METHODS])
    axes.set_ylabel("share of the people")
    axes.legend(title="skin", ncols=len(tones), fontsize="small", title_fontsize="small", loc="upper right")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])


if __name__ == "__main__":
    samples, results, output = map(Path, sys.argv[1:])
    with results.open(newline="") as file:
        portraits_figure(samples, list(csv.DictReader(file))).savefig(output, dpi=110)
