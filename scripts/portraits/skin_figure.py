"""What happened to skin tone: the share of each among the images of every method, from the tables of `dng test`.

usage: python scripts/portraits/skin_figure.py RESULTS.csv OUTPUT.png
"""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dng_lightning.evaluation.class_balance import wilson_interval
from scripts.portraits.attributes import PortraitAttributes
from scripts.portraits.drawing import COLOURS


def skin_figure(table: Path) -> Figure:
    """A group of bars for each row of a table, with 95 % intervals; the line is the share in the data.

    Args:
        table: ``results.csv`` of a study of portraits.
    """
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    tones = PortraitAttributes.values["skin"]
    figure = Figure(figsize=(10, 0.9 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['method']} ({100 * float(row['forbidden_rate']):.1f} % forbidden)" for row in rows]
    heights, places = 0.8 / len(tones), np.arange(len(rows))
    for number, tone in enumerate(tones):
        shares = [float(row[f"skin_{tone}"]) for row in rows]
        counts = [int(row["n"]) for row in rows]
        ends = np.array([wilson_interval(round(s * n), n) for s, n in zip(shares, counts, strict=True)]).T
        colour = [part / 255 for part in COLOURS["skin"][tone]]
        axes.barh(places + (number - 1.5) * heights, shares, heights, color=colour, edgecolor="black", linewidth=0.5)
        spread = np.abs(ends - np.array(shares))
        axes.errorbar(shares, places + (number - 1.5) * heights, xerr=spread, fmt="none", ecolor="grey", elinewidth=0.8)
    axes.axvline(1 / len(tones), color="black", linestyle=":", linewidth=1)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel("share of the images (dotted: in the data)")
    return figure


if __name__ == "__main__":
    skin_figure(Path(sys.argv[1])).savefig(sys.argv[2], dpi=110)
