"""Figures: grids of images, bar charts of classes, trajectories of posterior and scale."""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from dng_lightning.storage.files import write_whole

COLOURS = {True: "tab:red", False: "tab:blue"}  # of forbidden and of allowed images
RED = torch.tensor([214, 39, 40], dtype=torch.uint8)


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, atomically."""
    figure.savefig(file := io.BytesIO(), dpi=dpi)
    write_whole(path, file.getbuffer())


def framed_grid(images: Tensor, marked: Sequence[bool] | None = None, columns: int = 8) -> Tensor:
    """Images in a grid; marked images have a red frame.

    Args:
        images: uint8 (N, C, H, W), C being 1 or 3.
        marked: whether each image has a frame; None for no frames.
        columns: images per row.

    Returns:
        uint8 (3, height, width).
    """
    border = max(1, images.shape[-1] // 14)
    padded = torch.nn.functional.pad(images.expand(-1, 3, -1, -1), [border] * 4, value=255).clone()
    for image, is_marked in zip(padded, marked or [False] * len(padded), strict=True):
        if is_marked:
            frame = torch.ones(image.shape[1:], dtype=torch.bool)
            frame[border:-border, border:-border] = False
            image[:, frame] = RED[:, None]
    grid: Tensor = make_grid(padded, nrow=columns, padding=0)
    return grid


def side_by_side(panels: dict[str, Tensor]) -> Figure:
    """Grids, uint8 (3, h, w), under their titles: side by side, or one below the other if they are long rows."""
    ratio = max(grid.shape[1] / grid.shape[2] for grid in panels.values())
    stacked = ratio < 0.3
    rows, columns = (len(panels), 1) if stacked else (1, len(panels))
    largest = max(grid.shape[2] for grid in panels.values())
    width = 8 if stacked else max(4.2, min(8, largest / 150))  # large images need more room
    figure = Figure(figsize=(width * columns, (width * ratio + 0.5) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (title, grid) in zip(axes, panels.items(), strict=True):
        panel.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        panel.set_title(title)
        panel.set_axis_off()
    return figure


def named_classes(class_names: Sequence[str], forbidden: Collection[int]) -> list[int]:
    """The labels whose names a chart of the classes has room for: all, or the forbidden ones of more than forty."""
    return list(range(len(class_names))) if len(class_names) <= 40 else sorted(forbidden)


def class_bars(
    counts: Mapping[str, Sequence[int]], class_names: Sequence[str], forbidden: Collection[int] = ()
) -> Figure:
    """Share of each class, with a bar for each entry of ``counts``; the names of forbidden classes are red."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(counts)
    for row, (name, own) in enumerate(counts.items()):
        places = [i + (row - (len(counts) - 1) / 2) * width for i in range(len(own))]
        axes.bar(places, [count / sum(own) for count in own], width, label=name)
    axes.axhline(
        1 / (len(class_names) - len(forbidden)), color="grey", lw=0.8, ls=":", label="even, without the forbidden"
    )
    named = named_classes(class_names, forbidden)
    texts = [class_names[label] for label in named]
    axes.set_xticks(named, texts, rotation=45 if max(map(len, texts), default=0) > 3 else 0)
    for label, tick in zip(named, axes.get_xticklabels(), strict=True):
        if label in forbidden:
            tick.set_color(COLOURS[True])
    axes.set_ylabel("share of images")
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


@dataclass(frozen=True)
class TrajectorySet:
    """Trajectories of N images over S steps.

    Attributes:
        times: t / T of the level that each step starts from, (S,).
        scale: guidance scale, (N, S).
        posterior: sum of the forbidden posteriors, (N, S); None if the guidance has no posterior.
        forbidden: which final images are forbidden, (N,).
    """

    times: Sequence[float]
    scale: Tensor
    posterior: Tensor | None
    forbidden: Sequence[bool]

    def plot(self, figure: Figure) -> Iterator[tuple[Axes, Tensor]]:
        """Axes of posterior and scale against t, one above the other, each with its values (N, S)."""
        rows = {"posterior of the forbidden": self.posterior} if self.posterior is not None else {}
        rows |= {"guidance scale": self.scale}
        figure.set_size_inches(6.4, 2.6 * len(rows))
        for axes, (name, row) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
            values = row.cpu().double()
            axes.set_ylabel(name)
            axes.set_xlim(1, 0)
            positive, highest = values[values > 0], float(values.max())
            if len(positive) and float(positive.min()) < 1e-2 * highest:
                axes.set_yscale("log")
                axes.set_ylim(max(float(positive.min()), 1e-6 * highest) / 2, 2 * highest)
            yield axes, values.clamp(min=1e-30)
        axes.set_xlabel("t / T")

    def lines(self, axes: Axes, values: Tensor, shown: Sequence[int]) -> None:
        """Draw a line for each of the ``shown`` images; red if the final image is forbidden."""
        for i in shown:
            axes.plot(self.times, values[i].tolist(), lw=0.7, alpha=0.8, color=COLOURS[bool(self.forbidden[i])])


def trajectories(shown: TrajectorySet) -> Figure:
    """Posterior and guidance scale against t, one line per image."""
    figure = Figure(layout="constrained")
    for axes, values in shown.plot(figure):
        shown.lines(axes, values, range(len(values)))
    return figure


def trajectory_bands(shown: TrajectorySet) -> Figure:
    """Like ``trajectories``, for many images: mean, median, 10 % to 90 % of the images, and eight single images.

    Up to four of the eight are forbidden.
    """
    red = [i for i, is_forbidden in enumerate(shown.forbidden) if is_forbidden][:4]
    blue = [i for i, is_forbidden in enumerate(shown.forbidden) if not is_forbidden][: 8 - len(red)]
    figure = Figure(layout="constrained")
    for axes, values in shown.plot(figure):
        low, median, high = values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype), dim=0).tolist()
        shown.lines(axes, values, blue + red)
        axes.fill_between(shown.times, low, high, color="grey", alpha=0.3, lw=0, label="10 % to 90 % of the images")
        axes.plot(shown.times, median, color="black", lw=1.2, ls=":", label="median")
        axes.plot(shown.times, values.mean(0).tolist(), color="black", lw=1.8, label="mean")
        if red:
            axes.plot([], [], color=COLOURS[True], label="an image that is forbidden")
        axes.plot([], [], color=COLOURS[False], label="another image")
    figure.set_size_inches(4.8, 2.4 * len(figure.axes))  # readable at TensorBoard's small size
    figure.axes[0].legend(fontsize="x-small", framealpha=0.5)
    return figure
