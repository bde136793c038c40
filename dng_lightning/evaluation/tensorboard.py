"""What is drawn on TensorBoard: charts and their layout, classes, trajectories, settings beside results."""

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dng_lightning.evaluation import plots
from dng_lightning.evaluation.plots import TrajectorySet

Chart = list[Any]
Layout = dict[str, dict[str, Chart]]
"""Category -> title -> chart, as ``SummaryWriter.add_custom_scalars`` takes it, once a run."""

RENAMED = {"forbidden": "forbidden_rate", "fd_retained": "fd"}
MEASURED = ("forbidden", "kl", "kl_own", "kl_uniform", "tv", "fd_retained", "fd_all", "kid", "precision", "recall")
MEASURES = {column: f"metrics/{RENAMED.get(column, column)}" for column in (*MEASURED, "invasiveness")}
MEASURES |= {column: f"cost/{column}" for column in ("evaluations", "images_per_second")}
"""Columns of ``results.csv`` and their tags, as ``GuidedSampling`` calls those that it has."""

CHARTS = {
    "Class balance": {
        "Share that is forbidden": "forbidden",
        "KL from the even retained classes": "kl",
        "KL from what is retained of the unguided images": "kl_own",
        "KL from all classes evenly": "kl_uniform",
    },
    "Guidance": {"Images moved that were never forbidden": "invasiveness"},
    "Quality": {
        "Fréchet distance to the retained real images": "fd_retained",
        "Fréchet distance to all real images": "fd_all",
        "Precision": "precision",
        "Recall": "recall",
    },
}
"""Category -> title -> column, of the runs of ``dng test``."""


def writer_of(trainer: Trainer) -> SummaryWriter | None:
    """The trainer's TensorBoard; None if it logs to none, and on other devices than the first."""
    loggers = (log for log in trainer.loggers if isinstance(log, TensorBoardLogger) and trainer.is_global_zero)
    return next((logger.experiment for logger in loggers), None)


# --- charts ---


def lines(*tags: str) -> Chart:
    """A chart of these scalars; a tag that ends in ``*`` stands for all that begin so."""
    # TensorBoard takes regular expressions and matches the beginning alone: val/loss would bring val/loss_t along
    return ["Multiline", [re.escape(tag[:-1]) if tag.endswith("*") else f"{re.escape(tag)}$" for tag in tags]]


def band(tag: str) -> Chart:
    """A chart of what ``spread`` logs."""
    return ["Margin", [f"{tag}_mean", f"{tag}_low", f"{tag}_high"]]


def result_charts() -> Layout:
    """The charts of ``dng test``; every run has the same, and TensorBoard shows them once."""
    charts = {
        category: {f"{title}, against 1,000 × scale": lines(MEASURES[column]) for title, column in titles.items()}
        for category, titles in CHARTS.items()
    }
    title = "Guidance scale against 1,000 t / T (the noise is on the right), mean and its 95 % interval"
    charts["Guidance"] |= {
        title: band("way/scale"),
        "Posterior of the forbidden against 1,000 t / T, mean and its 95 % interval": band("way/posterior"),
    }
    return charts


# --- what charts show ---


def spread(writer: SummaryWriter, tag: str, values: Tensor, step: int) -> None:
    """Log the mean of a quantity >= 0 over images, (N,), and the 95 % interval of that mean, for ``band``.

    The scalars are ``<tag>_mean``, ``<tag>_low`` and ``<tag>_high``.
    """
    mean = float(values.mean())
    error = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    for name, value in (("mean", mean), ("low", max(0.0, mean - error)), ("high", mean + error)):
        writer.add_scalar(f"{tag}_{name}", value, step)


def trajectories(writer: SummaryWriter, tag: str, shown: TrajectorySet, step: int) -> None:
    """Log posterior and guidance scale: a figure against t, and the spread of single numbers.

    The figure is ``<tag>/trajectories``; the spread of the images' average scale ``<tag>/scale``, that of their last
    posterior ``<tag>/posterior``.
    """
    spread(writer, f"{tag}/scale", shown.scale.mean(1), step)
    if shown.posterior is not None:
        spread(writer, f"{tag}/posterior", shown.posterior[:, -1], step)
    writer.add_figure(f"{tag}/trajectories", plots.trajectory_bands(shown), step)


def class_bars(
    writer: SummaryWriter,
    counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    forbidden: Collection[int],
    step: int,
) -> None:
    """Log a bar chart of each class's share of the images; ``counts`` are name -> images of each class."""
    shares = {name: [count / sum(found) for count in found] for name, found in counts.items()}
    writer.add_figure("classes/bars", plots.class_bars(shares, class_names, forbidden), step)


def class_shares(writer: SummaryWriter, tag: str, counts: Sequence[int], class_names: Sequence[str], step: int) -> None:
    """Log each class's share of the images as a scalar ``<tag>/<class name>``, for a chart of ``lines("<tag>/*")``."""
    for name, count in zip(class_names, counts, strict=True):
        word = re.sub(r"[^-.\w]", "_", name)  # a tag is made of words
        writer.add_scalar(f"{tag}/{word}", count / sum(counts), step)


def class_histogram(writer: SummaryWriter, tag: str, counts: Sequence[int], step: int) -> None:
    """Log how many images each class has, at least one in all, as a histogram with a bucket of width one a class.

    Raw, because ``add_histogram`` would trim the empty buckets, so that a removed class goes unseen.
    """
    present = [label for label, count in enumerate(counts) if count]
    writer.add_histogram_raw(
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


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without nesting: a class under its name, its own settings under dotted ones."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if not isinstance(value, dict):
            found[name] = value
            continue
        kind = value.get("class_path") or value.get("class") or ""
        inner = {f"{name}.{key}": own for key, own in value.get("init_args", value).items() if key != "class"}
        found |= {name: kind.rsplit(".", 1)[-1] or None} | flat(inner)
    return found


def hyperparameters(writer: SummaryWriter, settings: Mapping[str, Any], metrics: Sequence[str] | None = None) -> None:
    """Fill the HPARAMS tab with a run's settings and, as its results, the last values of scalars that it logged.

    ``SummaryWriter.add_hparams`` would make a run of its own of them, and ``TensorBoardLogger.log_hyperparams`` log
    each result once more, at a step where it was not measured.

    Args:
        writer: where to.
        settings: plain values, and classes with their settings as dicts, which become dotted names; what is None or
            False is left out and long values are cut, to keep the table short.
        metrics: tags of scalars; None lets TensorBoard gather settings and scalars from all runs that it shows, which
            then may have different ones.
    """
    told = {name: value for name, value in flat(settings).items() if value is not None and value is not False}
    plain = {name: value if type(value) in (int, float) else shorten(str(value), 60) for name, value in told.items()}
    file = writer._get_file_writer()  # type: ignore[no-untyped-call]
    experiment, *session = hparams(plain, dict.fromkeys(metrics or (), 0.0))  # type: ignore[no-untyped-call]
    for summary in session if metrics is None else (experiment, *session):
        file.add_summary(summary)
    writer.flush()


def write_result(
    folder: Path,
    settings: Mapping[str, Any],
    measures: Mapping[str, Any],
    counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    forbidden: Collection[int],
    samples: tuple[Tensor, Sequence[bool]] | None = None,
    shown: TrajectorySet | None = None,
) -> None:
    """Write a row of ``results.csv`` as a run, so that TensorBoard compares the guidances.

    The scalars stand at the step 1,000 × scale, so that a chart of several runs is a curve over the scale.

    Args:
        folder: of the run alone; an earlier one is replaced.
        settings: for the HPARAMS tab; see ``hyperparameters``.
        measures: of ``MEASURES`` those that there are.
        counts: name -> images of each class; the first is what the run is about, the others are for comparison.
        class_names: name of each label.
        forbidden: labels.
        samples: uint8 images (N, C, H, W), and which are forbidden; None for none.
        shown: how some of the images came about; None for no chart of it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    step = round(1000 * float(settings.get("scale") or 0))
    with SummaryWriter(str(folder)) as writer:
        writer.add_custom_scalars(result_charts())
        for column, tag in MEASURES.items():
            if measures.get(column) is not None:
                writer.add_scalar(tag, measures[column], step)
        class_histogram(writer, "classes/generated", next(iter(counts.values())), step)
        class_bars(writer, counts, class_names, forbidden, step)
        if samples is not None:
            writer.add_image("samples/first_seeds", plots.framed_grid(*samples), step)
        if shown is not None:
            rows = {"scale": shown.scale, "posterior": shown.posterior}
            for name, values in ((name, values) for name, values in rows.items() if values is not None):
                for time, column in zip(shown.times, values.T, strict=True):
                    spread(writer, f"way/{name}", column, round(1000 * time))
            writer.add_figure("way/trajectories", plots.trajectory_bands(shown), step)
        hyperparameters(writer, settings)
