"""TensorBoard output: histograms of classes, and settings with their results (HPARAMS)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

METRICS = "forbidden_rate kl_retained kl_unguided kl_all tv fd_retained fd_all kid precision recall rmse_to_unguided"
MEASURES = {f"metrics/{column}": column for column in METRICS.split()}
MEASURES |= {f"speed/{column}": column for column in ("nfe", "images_per_second")}
"""Tags and their columns of ``results.csv``."""


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger without the chart of the epoch, which would precede the metrics."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See ``TensorBoardLogger.log_metrics``."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def discard(self) -> None:
        """Remove the file of a run that was refused, which Lightning opens before all checks, and an empty folder."""
        from tensorboard.backend.event_processing import event_file_loader  # type: ignore[import-untyped]  # slow

        folder = Path(self.log_dir)
        for file in folder.glob(f"events.out.tfevents.*.{os.getpid()}.*"):
            if len(list(event_file_loader.LegacyEventFileLoader(str(file)).Load())) <= 1:  # the version of the format
                file.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


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
