"""Images, histograms, tables and settings for the loggers of a trainer, with one interface for all loggers."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dng_lightning.data.pixels import to_png
from dng_lightning.evaluation import tensorboard
from dng_lightning.evaluation.results_file import csv_text
from dng_lightning.storage.files import file_name, write_whole


class Board:
    """Logs to each of several loggers.

    TensorBoard and Weights & Biases get images and histograms; MLflow and Aim get images, and the bars of a histogram
    as metrics; any other logger with a folder, such as ``CSVLogger``, gets PNG and CSV files in its ``media`` folder,
    and these metrics.

    Args:
        loggers: Lightning's loggers, or others with their interface.
    """

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.loggers = loggers

    def add_image(self, tag: str, image: Tensor, step: int) -> None:
        """Log an image, uint8 (3, H, W)."""
        pixels = image.permute(1, 2, 0).cpu().numpy()
        logger: Any
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, image, step)
            elif hasattr(logger, "log_image"):
                logger.log_image(tag, [pixels], step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_image(logger.run_id, pixels, key=tag, step=step)
            elif hasattr(logger.experiment, "track"):
                logger.experiment.track(importlib.import_module("aim").Image(pixels), name=tag, step=step)
            else:
                _write_media(logger, f"{file_name(tag)}-{step:08d}.png", to_png(image))

    def add_figure(self, tag: str, figure: Figure, step: int) -> None:
        """Log a figure as an image."""
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        self.add_image(tag, torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1), step)

    def add_counts(self, tag: str, counts: Sequence[int], step: int) -> None:
        """Log how many images each class has, as a histogram with one bar per class."""
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                tensorboard.class_histogram(logger.experiment, tag, counts, step)
            elif _is_wandb(logger):
                wandb, edges = importlib.import_module("wandb"), np.arange(len(counts) + 1) - 0.5
                logger.log_metrics({tag: wandb.Histogram(np_histogram=(np.array(counts), edges))}, step)
            else:
                logger.log_metrics({f"{tag}/{label}": float(count) for label, count in enumerate(counts)}, step)

    def add_row(self, name: str, measures: Mapping[str, float], step: int) -> None:
        """Log the measures of a row of results; TensorBoard has a run of its own for each row."""
        for logger in self.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_metrics({f"{name}/{measure}": value for measure, value in measures.items()}, step)

    def add_table(self, tag: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]], step: int) -> None:
        """Log a table: as text on TensorBoard and Aim, as a table on Weights & Biases, else as a CSV file."""
        cells = [[row[column] for column in columns] for row in rows]
        text = csv_text(columns, rows)
        logger: Any
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                lines = [columns, ["---"] * len(columns), *cells]
                logger.experiment.add_text(tag, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)
            elif _is_wandb(logger):
                logger.log_table(tag, list(columns), cells, step=step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_text(logger.run_id, text, f"{tag}.csv")
            elif hasattr(logger.experiment, "track"):
                logger.experiment.track(importlib.import_module("aim").Text(text), name=tag, step=step)
            else:
                _write_media(logger, f"{file_name(tag)}.csv", text.encode())

    def add_settings(self, settings: Mapping[str, Any], measured: Sequence[str]) -> None:
        """Log the settings for the comparison of runs; ``measured`` are the tags of their results."""
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                tensorboard.hyperparameters(logger.experiment, settings, measured)
            else:
                plain = {f"run/{name}": value for name, value in settings.items() if value is not None}
                logger.log_hyperparams(plain)  # under a prefix of their own, as MLflow refuses changes of the module's

    def flush(self) -> None:
        """Flush the TensorBoard loggers."""
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()


def board_of(trainer: Trainer) -> Board:
    """The trainer's loggers; none on all devices but the first."""
    return Board(trainer.loggers if trainer.is_global_zero else [])


def _is_wandb(logger: Logger) -> bool:
    return type(logger).__name__ == "WandbLogger"


def _write_media(logger: Any, name: str, content: bytes) -> None:
    """Write a file to the ``media`` folder of a logger, if it has a folder."""
    if folder := getattr(logger, "log_dir", None) or logger.save_dir:
        path = Path(folder, "media", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
