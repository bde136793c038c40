"""TensorBoard output: metrics, classes, images, trajectories, and settings with their results (HPARAMS)."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dng_lightning.evaluation import figures
from dng_lightning.evaluation.figures import TrajectorySet

METRICS = "forbidden_rate kl_retained kl_unguided kl_all tv fd_retained fd_all kid precision recall rmse_to_unguided"
MEASURES = {f"metrics/{column}": column for column in METRICS.split()}
MEASURES |= {f"speed/{column}": column for column in ("nfe", "images_per_second")}
"""Tags and their columns of ``results.csv``."""


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger without the chart of the epoch, which would precede the metrics."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See ``TensorBoardLogger.log_metrics``."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


def class_bars(
    writer: Any,
    counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    forbidden: Collection[int],
    step: int,
) -> None:
    """Log a bar chart of each class's share of the images; ``counts`` are name -> images of each class.

    ``writer`` is a ``SummaryWriter`` or a ``Board``.
    """
    shares = {name: [count / sum(found) for count in found] for name, found in counts.items()}
    writer.add_figure("samples/class_shares", figures.class_bars(shares, class_names, forbidden), step)


def class_histogram(writer: SummaryWriter, tag: str, counts: Sequence[int], step: int) -> None:
    """Log how many images each class has, at least one in total, as a histogram with a bucket of width 1 per class.

    Written raw, because ``add_histogram`` trims the empty buckets and thereby hides removed classes.
    """
    present = [label for label, count in enumerate(counts) if count]
    writer.add_histogram_raw(
        tag,
        min=present[0] - 0.5,  # the outer edges of the first and the last non-empty bucket
        max=present[-1] + 0.5,
        num=sum(counts),
        sum=sum(label * count for label, count in enumerate(counts)),
        sum_squares=sum(label**2 * count for label, count in enumerate(counts)),
        bucket_limits=[label + 0.5 for label in range(len(counts))],
        bucket_counts=list(counts),
        global_step=step,
    )


def hyperparameters(writer: SummaryWriter, settings: Mapping[str, Any], metrics: Sequence[str] | None = None) -> None:
    """Fill the HPARAMS tab with a run's settings and, as its results, the last values of scalars that it logged.

    ``SummaryWriter.add_hparams`` would create a separate run, and ``TensorBoardLogger.log_hyperparams`` would log each
    result again, at a wrong step.

    Args:
        writer: TensorBoard writer.
        settings: short plain values; None is left out.
        metrics: tags of scalars; None lets TensorBoard collect settings and scalars from all runs, which may then
            differ in these.
    """
    plain = {name: value for name, value in settings.items() if value is not None}
    file = writer._get_file_writer()  # type: ignore[no-untyped-call]
    experiment, *session = hparams(plain, dict.fromkeys(metrics or (), 0.0))  # type: ignore[no-untyped-call]
    for summary in session if metrics is None else (experiment, *session):
        file.add_summary(summary)
    writer.flush()


def write_result(
    folder: Path,
    settings: Mapping[str, Any],
    measures: Mapping[str, float],
    counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    forbidden: Collection[int],
    samples: tuple[Tensor, Sequence[bool]] | None = None,
    shown: TrajectorySet | None = None,
) -> None:
    """Write a row of ``results.csv`` as a run, for comparisons of the guidances in TensorBoard.

    The step of the scalars is 1,000 × scale, so that a chart of several runs is a curve over the scale.

    Args:
        folder: folder of this run only; an earlier run in it is replaced.
        settings: for the HPARAMS tab; see ``hyperparameters``.
        measures: values by tag.
        counts: name -> images of each class; the first entry is the run itself, the others are for comparison.
        class_names: name of each label.
        forbidden: forbidden labels.
        samples: uint8 images (N, C, H, W), and which are forbidden; None for no images.
        shown: trajectories of some of the images; None for no chart of them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    step = round(1000 * float(settings.get("scale") or 0))
    with SummaryWriter(str(folder)) as writer:
        for tag, value in measures.items():
            writer.add_scalar(tag, value, step)
        class_histogram(writer, "samples/class_counts", next(iter(counts.values())), step)
        class_bars(writer, counts, class_names, forbidden, step)
        if samples is not None:
            writer.add_image("samples/first_seeds", figures.framed_grid(*samples), step)
        if shown is not None:
            writer.add_figure("trajectories/scale_and_posterior", figures.trajectory_bands(shown), step)
        hyperparameters(writer, settings)
