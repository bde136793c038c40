"""The 2-D mixture under each method, beside the true conditional: python scripts/benchmarks/mixture_figure.py [PNG]."""

import sys
from io import BytesIO

import torch
from exact import FIGURE, STD, TWO, methods
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor

COUNT, STEPS, COLUMNS = 600, 1000, 4
KEPT, FORBIDDEN = "#1f4e79", "#c0392b"


def panel(axes: Axes, title: str, x_0: Tensor) -> None:
    """Samples as points over the two modes, of 3 standard deviations each."""
    counts, moved, _ = TWO.measure(x_0)
    kept = sum(counts[component] for component in TWO.retained)
    for component, mean in enumerate(TWO.mixture.means.tolist()):
        retained = component in TWO.retained
        fill = {"fc": FORBIDDEN, "ec": "none", "alpha": 0.2}
        if retained:
            fill = {"fc": "none", "ec": "0.45", "ls": (0, (3, 2))}
        axes.add_patch(Circle((mean[0], mean[1]), 3 * STD, lw=0.8, **fill))
    forbidden = ~torch.isin(TWO.mixture.nearest(x_0), torch.tensor(TWO.retained))
    for which, colour in ((~forbidden, KEPT), (forbidden, FORBIDDEN)):
        axes.scatter(*x_0[which].T.numpy(), s=1.5, c=colour, lw=0, alpha=0.7)
    axes.set(xlim=(-3, 9.6), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("0.8")
    axes.set_title(title, loc="left", fontsize=9)
    said = f"{100 * (1 - kept / len(x_0)):.1f} % forbidden, mode moved by {moved:.2f}"
    axes.set_xlabel(said, loc="left", fontsize=8, color="0.35", labelpad=2)


def main(path: str = "mixture.png") -> None:
    """Draw the figure."""
    compared = methods(TWO)
    truth, component = TWO.mixture.draw(2 * COUNT, torch.Generator().manual_seed(0))
    panels = {"The truth": truth[torch.isin(component, torch.tensor(TWO.retained))][:COUNT]}
    for name in FIGURE:
        print(name, file=sys.stderr, flush=True)
        panels[name] = TWO.draw(compared[name], STEPS, COUNT)[0]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 1.1 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (title, x_0) in zip(grid, panels.items(), strict=False):
        panel(axes, title, x_0)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    legend = "shaded: the forbidden mode; dashed: the kept mode (3 standard deviations)"
    figure.supxlabel(legend, x=0.99, ha="right", fontsize=8, color="0.35")
    figure.savefig(whole := BytesIO(), dpi=150)
    Image.open(whole).convert("RGB").quantize(128).save(path, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    main(*sys.argv[1:])
