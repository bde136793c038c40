"""A row of ``results.csv`` on TensorBoard: a run of its own, so that TensorBoard compares the guidances."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dng_lightning.evaluation import board, plots

MEASURES = {
    "forbidden": "metrics/forbidden_rate",
    "kl": "metrics/kl",
    "kl_own": "metrics/kl_own",
    "kl_uniform": "metrics/kl_uniform",
    "tv": "metrics/tv",
    "fd_retained": "metrics/fd",
    "fd_all": "metrics/fd_all",
    "kid": "metrics/kid",
    "precision": "metrics/precision",
    "recall": "metrics/recall",
    "invasiveness": "metrics/invasiveness",
    "evaluations": "cost/evaluations",
    "images_per_second": "cost/images_per_second",
}
"""Columns and what they are called on the board, as ``GuidedSampling`` calls those that it has."""


@dataclass(frozen=True)
class Way:
    """Times t / T (S,); of some images scale (N, S), posterior (N, S) or None, and which are forbidden (N,)."""

    times: Sequence[float]
    scale: Tensor
    posterior: Tensor | None
    forbidden: Sequence[bool]


def layout() -> board.Layout:
    """The charts; every run has the same, and TensorBoard shows them once."""

    def one(title: str, column: str) -> dict[str, board.Chart]:
        return {f"{title}, against 1,000 × scale": board.lines(MEASURES[column])}

    return {
        "Class balance": one("Share that is forbidden", "forbidden")
        | one("KL from the even retained classes", "kl")
        | one("KL from what is retained of the unguided images", "kl_own")
        | one("KL from all classes evenly", "kl_uniform"),
        "Guidance": {
            "Guidance scale against 1,000 t / T (the noise is on the right), mean and its 95 % interval": board.band(
                "way/scale"
            ),
            "Posterior of the forbidden against 1,000 t / T, mean and its 95 % interval": board.band("way/posterior"),
        }
        | one("Images moved that were never forbidden", "invasiveness"),
        "Quality": one("Fréchet distance to the retained real images", "fd_retained")
        | one("Fréchet distance to all real images", "fd_all")
        | one("Precision", "precision")
        | one("Recall", "recall"),
    }


def write(
    folder: Path,
    settings: Mapping[str, Any],
    measures: Mapping[str, Any],
    counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    forbidden: Collection[int],
    samples: tuple[Tensor, Sequence[bool]] | None = None,
    way: Way | None = None,
) -> None:
    """Write a run, in place of an earlier one in the folder.

    The scalars stand at the step 1,000 × scale, so that a chart of several runs is a curve over the scale.

    Args:
        folder: of the run alone.
        settings: for the HPARAMS tab; see ``board.hyperparameters``.
        measures: of ``MEASURES`` those that there are.
        counts: name -> images of each class; the first is what the run is about, the others are for comparison.
        class_names: name of each label.
        forbidden: labels.
        samples: uint8 images (N, C, H, W), and which are forbidden; None for none.
        way: how some of the images came about; None for no chart of it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    step = round(1000 * float(settings.get("scale") or 0))
    with SummaryWriter(str(folder)) as writer:
        writer.add_custom_scalars(layout())
        for column, tag in MEASURES.items():
            if measures.get(column) is not None:
                writer.add_scalar(tag, measures[column], step)
        board.class_histogram(writer, "classes/generated", next(iter(counts.values())), step)
        shares = {name: [count / sum(found) for count in found] for name, found in counts.items()}
        writer.add_figure("classes/bars", plots.class_bars(shares, class_names, forbidden), step)
        if samples is not None:
            writer.add_image("samples/first_seeds", plots.framed_grid(*samples), step)
        if way is not None:
            for place, time in enumerate(way.times):
                board.spread(writer, "way/scale", way.scale[:, place], round(1000 * time))
                if way.posterior is not None:
                    board.spread(writer, "way/posterior", way.posterior[:, place], round(1000 * time))
            figure = plots.trajectory_bands(way.times, way.posterior, way.scale, way.forbidden)
            writer.add_figure("way/trajectories", figure, step)
        board.hyperparameters(writer, settings)
