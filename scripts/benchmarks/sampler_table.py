"""Samplers and numbers of steps on a mixture whose exact predictions are known.

    python scripts/benchmarks/sampler_table.py [PNG] > scripts/benchmarks/samplers.md

Prints ``INTRODUCTION`` and, for each path, four tables of samplers by numbers of steps: the share of the forbidden half
that is left, how wide the kept mode is, how far the samples that were allowed without guidance are displaced, all with
95 % intervals, and the network evaluations an image. Draws the first two as a figure.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from mixture import BatchNoise, GaussianMixture

from dng_lightning.evaluation.class_balance import wilson_interval
from dng_lightning.guidance import DynamicNegativeGuidance, Unguided
from dng_lightning.posterior import Posterior, TrackedPosterior
from dng_lightning.sampling import Sampler, sample
from dng_lightning.schedule import LinearSchedule, NoiseSchedule, RectifiedFlowSchedule

COUNT, STEPS, STD = 16384, (50, 20, 10, 8, 4), 0.3
PATHS: dict[str, NoiseSchedule] = {
    "Variance preserving (DDPM, linear)": LinearSchedule(),
    "Rectified flow, from pure noise": RectifiedFlowSchedule(),
}
TRACKED = TrackedPosterior(prior=0.5)
UNBIASED = replace(TRACKED, divergence=1)
COMPLEMENT = replace(TRACKED, reference="complement")

INTRODUCTION = f"""\
# Samplers on an exact mixture

`python scripts/benchmarks/sampler_table.py scripts/benchmarks/samplers.png > scripts/benchmarks/samplers.md`. Two modes
in 2-D of standard deviation {STD}, the left one forbidden; DNG with a tracked posterior at scale 1, p_max 0.99 where no
other is named; N = {COUNT:,}, one seed, 95 % intervals (Wilson's of the share, else a bootstrap's with 200 resamples).
The truth is 0 %, a width of {STD:.2f} and no displacement. The displacement is the RMS distance to the unguided sample
of the same noise, of samples that are allowed without guidance. A few images that odds of up to 99 throw far out make
most of a large width and of a large displacement.
"""


@dataclass(frozen=True)
class Row:
    """A sampler and the posterior that goes with it.

    Attributes:
        posterior: of Dynamic Negative Guidance.
        eta: of the sampler.
        order: of the sampler.
    """

    posterior: Posterior
    eta: float = 1.0
    order: int = 1


ROWS = {
    "ancestral (DDPM, Euler ancestral)": Row(TRACKED),
    "ancestral, p_max 0.8": Row(replace(TRACKED, p_max=0.8)),
    "ancestral, against the complement": Row(COMPLEMENT),
    "DPM-Solver++ (2M) SDE": Row(TRACKED, order=2),
    "DPM-Solver++ (2M) SDE, against the complement": Row(COMPLEMENT, order=2),
    "DDIM, eta 0.5": Row(TRACKED, eta=0.5),
    "DDIM (Euler), divergence": Row(UNBIASED, eta=0.0),
    "DDIM (Euler), divergence, against the complement": Row(replace(COMPLEMENT, divergence=1), eta=0.0),
    "DPM-Solver++ (2M) ODE, divergence": Row(UNBIASED, eta=0.0, order=2),
    "DDIM (Euler), no divergence": Row(TRACKED, eta=0.0),
}
FIGURE = [name for name in ROWS if "SDE, against" not in name and "p_max" not in name]


@dataclass(frozen=True)
class Cell:
    """What a sampler gives in a number of steps: estimates with their intervals."""

    left: tuple[float, float, float]  # of the forbidden share, in %
    width: tuple[float, float, float]  # of the kept mode, along the line through both
    displacement: tuple[float, float, float]  # RMS distance to the unguided samples that are allowed
    evaluations: float  # of the network, an image


@cache
def measured(path: str, name: str, steps: int, count: int = COUNT) -> Cell:
    """Draw and measure."""
    row, mixture = ROWS[name], GaussianMixture(PATHS[path], [[-1.5, 0.0], [1.5, 0.0]], STD)
    guidance, predictor = DynamicNegativeGuidance(posterior=row.posterior), mixture.shared([0])
    sampler = Sampler(steps, row.eta, order=row.order)
    x_0, unguided = (
        sample(source, method, mixture.schedule, BatchNoise((count, 2)), sampler)
        for source, method in ((predictor, guidance), (mixture.shared([0]), Unguided()))
    )
    bad, spared = mixture.nearest(x_0) == 0, mixture.nearest(unguided) == 1
    number = int(bad.sum())
    low, high = (100 * bound for bound in wilson_interval(number, count))
    width = with_interval(x_0[~bad, 0].double(), lambda values: values.std(-1))
    away = (x_0 - unguided)[spared].double().square().sum(1)
    displacement = with_interval(away, lambda squares: squares.mean(-1).sqrt())
    return Cell((100 * number / count, low, high), width, displacement, predictor.nfe / count)


def with_interval(values: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """A statistic over the last dimension, with its bootstrap interval."""
    drawn = torch.randint(len(values), (200, len(values)), generator=torch.Generator().manual_seed(0))
    resampled = statistic(values[drawn])
    return float(statistic(values)), float(resampled.quantile(0.025)), float(resampled.quantile(0.975))


def main(figure: str | None = None) -> None:
    """Print the tables, and on stderr what is being measured."""
    print(INTRODUCTION)
    for path in PATHS:
        cells = {}
        for name in ROWS:
            print(f"{path}: {name}", file=sys.stderr, flush=True)
            cells[name] = [measured(path, name, steps) for steps in STEPS]
        print(f"## {path}\n")
        for title, text in (
            ("forbidden left, %", lambda cell: "{:.1f} ({:.1f}–{:.1f})".format(*cell.left)),
            ("width of the kept mode", lambda cell: "{:.2f} ({:.2f}–{:.2f})".format(*cell.width)),
            ("displacement", lambda cell: "{:.2f} ({:.2f}–{:.2f})".format(*cell.displacement)),
            ("network evaluations an image", lambda cell: f"{cell.evaluations:.0f}"),
        ):
            print(f"| {title} | {' | '.join(f'{steps} steps' for steps in STEPS)} |")
            print("|---" * (1 + len(STEPS)) + "|")
            for name, row in cells.items():
                print(f"| {name} | {' | '.join(text(cell) for cell in row)} |", flush=True)
            print()
    if figure:
        draw(figure)


def draw(target: str) -> None:
    """Both measures over the number of steps, for each path."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, len(PATHS), sharex=True, sharey="row")
    for column, path in zip(axes.T, PATHS, strict=True):
        for number, name in enumerate(FIGURE):
            cells = [measured(path, name, steps) for steps in STEPS]
            for ax, values in zip(column, ([c.left for c in cells], [c.width for c in cells]), strict=True):
                middle, low, high = zip(*values, strict=True)
                style = {"color": f"C{number}", "marker": "o", "ms": 3, "lw": 1.2}
                ax.plot(STEPS, middle, label=name, **style)
                ax.fill_between(STEPS, low, high, color=f"C{number}", alpha=0.15, lw=0)
        column[0].set_title(path, loc="left", fontsize=10)
        column[1].axhline(STD, color="0.4", lw=0.8, ls=":")
        column[1].set(xlabel="steps", xscale="log", yscale="log")
        column[1].set_xticks(STEPS, [str(steps) for steps in STEPS])
        widths = (0.2, 0.3, 0.5, 1, 2, 4)
        column[1].set_yticks(widths, [str(width) for width in widths])
        column[1].minorticks_off()
    axes[0, 0].set_ylabel("forbidden left, %")
    axes[1, 0].set_ylabel(f"width of the kept mode (dotted: true, {STD})")
    for ax in axes.ravel():
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.savefig(whole := BytesIO(), dpi=130)
    Image.open(whole).convert("RGB").quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
