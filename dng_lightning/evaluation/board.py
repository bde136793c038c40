"""What is drawn on TensorBoard: the layout of its charts, classes, trajectories, settings beside results."""

import re
from collections.abc import Collection, Mapping, Sequence
from textwrap import shorten
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dng_lightning.evaluation import plots

Chart = list[Any]
Layout = dict[str, dict[str, Chart]]
"""Category -> title -> chart, as ``SummaryWriter.add_custom_scalars`` takes it, once a run."""


def board_of(trainer: Trainer) -> SummaryWriter | None:
    """The trainer's TensorBoard; None if it logs to none, and on other devices than the first."""
    loggers = (log for log in trainer.loggers if isinstance(log, TensorBoardLogger) and trainer.is_global_zero)
    return next((logger.experiment for logger in loggers), None)


def lines(*tags: str) -> Chart:
    """A chart of these scalars; a tag that ends in ``*`` stands for all that begin so."""
    # TensorBoard takes regular expressions and matches the beginning alone: val/loss would bring val/loss_t along
    return ["Multiline", [re.escape(tag[:-1]) if tag.endswith("*") else f"{re.escape(tag)}$" for tag in tags]]


def band(tag: str) -> Chart:
    """A chart of what ``spread`` logs."""
    return ["Margin", [f"{tag}_mean", f"{tag}_low", f"{tag}_high"]]


def spread(board: SummaryWriter, tag: str, values: Tensor, step: int) -> None:
    """Log the mean of a quantity >= 0 over images and the 95 % interval of that mean, for ``band``.

    Args:
        board: where to.
        tag: the scalars are ``<tag>_mean``, ``<tag>_low`` and ``<tag>_high``.
        values: one an image, (N,).
        step: of the training.
    """
    mean = float(values.mean())
    error = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    for name, value in (("mean", mean), ("low", max(0.0, mean - error)), ("high", mean + error)):
        board.add_scalar(f"{tag}_{name}", value, step)


def trajectories(
    board: SummaryWriter,
    tag: str,
    times: Sequence[float],
    posterior: Tensor | None,
    scale: Tensor,
    forbidden: Sequence[bool],
    step: int,
) -> None:
    """Log posterior and guidance scale: a figure against t, and the spread of single numbers.

    Args:
        board: where to.
        tag: the figure is ``<tag>/trajectories``; the spread of the images' average scale ``<tag>/scale``, that of
            their last posterior ``<tag>/posterior``.
        times: see ``plots.trajectory_bands``, and so the next three.
        posterior: (N, S), or None.
        scale: (N, S).
        forbidden: (N,).
        step: of the training.
    """
    spread(board, f"{tag}/scale", scale.mean(1), step)
    if posterior is not None:
        spread(board, f"{tag}/posterior", posterior[:, -1], step)
    board.add_figure(f"{tag}/trajectories", plots.trajectory_bands(times, posterior, scale, forbidden), step)


def classes(
    board: SummaryWriter,
    counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    forbidden: Collection[int],
    step: int,
) -> None:
    """Log how many images each class has: for each name a histogram ``classes/<name>`` and shares; a bar chart of all.

    Args:
        board: where to.
        counts: name -> images of each class, at least one in all.
        class_names: name of each label.
        forbidden: labels.
        step: of the training, or any other number that tells the entries of a tag apart.
    """
    for name, found in counts.items():
        class_histogram(board, f"classes/{name}", found, step)
        class_shares(board, f"classes/{name}", found, class_names, step)
    shares = {name: [count / sum(found) for count in found] for name, found in counts.items()}
    board.add_figure("classes/bars", plots.class_bars(shares, class_names, forbidden), step)


def class_shares(board: SummaryWriter, tag: str, counts: Sequence[int], class_names: Sequence[str], step: int) -> None:
    """Log each class's share of the images as a scalar ``<tag>/<class name>``, for a chart of ``lines("<tag>/*")``."""
    for name, count in zip(class_names, counts, strict=True):
        word = re.sub(r"[^-.\w]", "_", name)  # a tag is made of words
        board.add_scalar(f"{tag}/{word}", count / sum(counts), step)


def class_histogram(board: SummaryWriter, tag: str, counts: Sequence[int], step: int) -> None:
    """Log how many images each class has, as a histogram with a bucket of width one a class.

    Raw, because ``add_histogram`` would trim the empty buckets, so that a removed class goes unseen.

    Args:
        board: where to.
        tag: of the histogram.
        counts: images of each class, at least one in all.
        step: of the training.
    """
    present = [label for label, count in enumerate(counts) if count]
    board.add_histogram_raw(
        tag,
        min=present[0] - 0.5,  # the outer edges of the first and the last bucket with something in it
        max=present[-1] + 0.5,
        num=sum(counts),
        sum=sum(label * count for label, count in enumerate(counts)),
        sum_squares=sum(label**2 * count for label, count in enumerate(counts)),
        bucket_limits=[label + 0.5 for label in range(len(counts))],
        bucket_counts=list(counts),
        global_step=step,
    )


def hyperparameters(board: SummaryWriter, settings: Mapping[str, Any], metrics: Sequence[str] | None = None) -> None:
    """Fill the HPARAMS tab with a run's settings and, as its results, the last values of scalars that it logged.

    ``SummaryWriter.add_hparams`` would make a run of its own of them, and ``TensorBoardLogger.log_hyperparams`` log
    each result once more, at a step where it was not measured.

    Args:
        board: where to.
        settings: plain values; what is None or False is left out and long ones are cut, to keep the table short.
        metrics: tags of scalars; None lets TensorBoard gather settings and scalars from all runs that it shows, which
            then may have different ones.
    """
    told = {name: value for name, value in settings.items() if value is not None and value is not False}
    plain = {name: value if type(value) in (int, float) else shorten(str(value), 60) for name, value in told.items()}
    writer = board._get_file_writer()  # type: ignore[no-untyped-call]
    experiment, *session = hparams(plain, dict.fromkeys(metrics or (), 0.0))  # type: ignore[no-untyped-call]
    for summary in session if metrics is None else (experiment, *session):
        writer.add_summary(summary)
    board.flush()
