"""Evaluates several methods on images of the same seeds: tables, figures and TensorBoard runs.

An ``Evaluator`` needs no trainer: ``add`` the images of a run batch by batch, then ``finish`` the run. All data are on
disk, so that any number of processes may add images and an interrupted evaluation can be continued.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.evaluation import figures, posterior_metrics, study_figures, tensorboard
from dng_lightning.evaluation.boards import Board
from dng_lightning.evaluation.features import FeatureExtractor
from dng_lightning.evaluation.figures import TrajectorySet
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.evaluation.measures import LEAST, measure, per_class
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.evaluation.results_file import Table
from dng_lightning.evaluation.runs import Cost, EvaluationRun, Labels, Samples
from dng_lightning.evaluation.sample_store import SampleStore
from dng_lightning.evaluation.tables import results_markdown, results_table, safety_table
from dng_lightning.storage.files import write_whole

COLUMNS = [
    *("method", "scale", "guidance", "n", "seeds", "steps", "features"),
    *("forbidden_rate", "forbidden_rate_low", "forbidden_rate_high"),
    *("kl_retained", "kl_retained_low", "kl_retained_high", "kl_all"),
    *("kl_unguided", "kl_unguided_low", "kl_unguided_high", "tv"),
    *("fd_retained", "fd_retained_low", "fd_retained_high", "fd_all", "kid", "precision", "recall"),
    *("rmse_to_unguided", "feature_distance_to_unguided", "class_counts"),
    *("nfe", "images_per_second", "memory_mb"),
]
KEY = ["method", "guidance", "seeds", "steps", "features"]
CLASS_COLUMNS = [*KEY, "class", "share", "kid", "precision", "recall"]
SHOWN = 24  # images of each method in samples.png
PLOTTED = 1000  # images with trajectories on TensorBoard

UNGUIDED = EvaluationRun.reference("Unguided")
REJECTION = EvaluationRun.reference("Rejection")


@dataclass
class Evaluator:
    """Stores the images of evaluation runs and computes the measures.

    Args:
        folder: folder of ``results.csv`` and the other results.
        seeds: consecutive seeds of all images.
        steps: number of sampling steps, for the tables.
        label_space: labels of the images, and the forbidden ones.
        label: labels images (B, C, H, W) in [-1, 1].
        extractor: feature extractor of the distances; None to leave out the measures that need real images.
        reference: reference statistics in these features; None to leave out the measures that need them.
        unguided: run of the unguided images; None if they are not sampled.
        trackers: posteriors that are tracked passively on the unguided images: settings to short name.
        about: common settings of the TensorBoard runs, such as the model.
        board: loggers that get the measures of each row, the table and the figures.

    Raises:
        SettingError: all classes are forbidden, or there are too few images for the measures.
    """

    folder: Path
    seeds: range
    steps: int
    label_space: LabelSpace
    label: Callable[[Tensor], Labels]
    extractor: FeatureExtractor | None = None
    reference: ReferenceStatistics | None = None
    unguided: EvaluationRun | None = UNGUIDED
    trackers: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    board: Board = field(default_factory=Board)

    def __post_init__(self) -> None:
        if not self.label_space.retained:
            raise SettingError("model.forbidden names every class: leave one class")
        if self.extractor is not None and len(self.seeds) < LEAST:
            found = f"got {len(self.seeds)}: raise data.num_samples"
            raise SettingError(f"precision and recall need {LEAST} images; {found}")
        self.times = [1.0]
        self.drawing = {"seeds": f"{self.seeds.start}-{self.seeds.stop - 1}", "steps": str(self.steps)}
        self.results = Table(self.folder / "results.csv", [*COLUMNS, *self.label_space.columns], KEY)
        self.classes = Table(self.folder / "classes.csv", CLASS_COLUMNS, [*KEY, "class"])
        self.posteriors = Table(self.folder / "posterior.csv", posterior_metrics.COLUMNS, posterior_metrics.KEY)

    def identity(self, run: EvaluationRun) -> dict[str, str]:
        """The values of ``KEY``, which identify a row."""
        features = self.extractor.name if self.extractor else "none"
        return {"method": run.method, "guidance": run.settings, **self.drawing, "features": features}

    def is_done(self, run: EvaluationRun) -> bool:
        """Whether the run has its row and, if unguided, the rows of the posteriors tracked with it."""
        tracked = [self.posteriors.has({"tracker": name, **self.drawing}) for name in self.trackers]
        return self.results.has(self.identity(run)) and (run != self.unguided or all(tracked))

    def unfinished(self, runs: Sequence[EvaluationRun]) -> list[EvaluationRun]:
        """The runs that are not done; also the unguided run, if others need its images and these are missing."""
        todo = [run for run in runs if not self.is_done(run)]
        if self.unguided is None or self.unguided in todo or not todo or self.store(self.unguided).is_complete:
            return todo
        return [self.unguided, *todo]

    def store(self, run: EvaluationRun) -> SampleStore:
        """Store of the run's images."""
        return SampleStore(self.folder / "sample_cache" / f"{run.method}-{_hash(self.identity(run), 12)}", self.seeds)

    def add(self, run: EvaluationRun, samples: Samples, tracked: Tensor | None = None) -> None:
        """Label and store a batch of images.

        Args:
            run: run of the images.
            samples: the batch.
            tracked: log probabilities of the passively tracked posteriors, (B, S, W, K); None without tracking.
        """
        pixels, self.times = to_uint8(samples.images), list(samples.times)
        found = self.label(to_float(pixels))  # of the stored pixels, as the features are
        arrays = {"pixels": pixels, "labels": found.labels}
        if found.attributes is not None:
            arrays["attributes"] = found.attributes
        if self.extractor:
            arrays["features"] = self.extractor(pixels)
        if tracked is not None:
            arrays["tracked"] = posterior_metrics.halfway_and_end(tracked, samples.times)
        if run.scale is not None:
            arrays["scales"] = samples.scale.float()
            if samples.posterior is not None:
                arrays["posterior"] = samples.posterior.sum(2).float()
        self.store(run).write(samples.seeds, **arrays)

    def finish(self, run: EvaluationRun, cost: Cost) -> None:
        """Compute the measures of a run from all its images, and write its rows.

        Raises:
            SettingError: images are missing.
        """
        store = self.store(run)
        store.merge()
        unguided = self.store(self.unguided) if self.unguided else None
        measures = measure(store, unguided, self.reference, self.label_space)
        rows = [{"scale": run.scale} | self.identity(run) | measures | cost.columns()]
        if run == self.unguided:
            if passed := 1 - measures["forbidden_rate"]:
                rejected = measure(store, unguided, self.reference, self.label_space, reject=True)
                rows.append(self.identity(REJECTION) | rejected | cost.columns(passed))
            self._judge_trackers(store)
        classes = per_class(store, self.reference, self.label_space.names)
        self.classes.add([self.identity(run) | row for row in classes])
        self._log(store, rows)
        if run != self.unguided:  # the unguided images are needed for other runs
            store.keep_only(SHOWN, "pixels", "labels")
        self.results.add(rows)

    def write_figures(self, runs: Sequence[EvaluationRun]) -> None:
        """Draw ``tradeoff.png``, ``histograms.png`` and ``samples.png``, and write ``results.md``.

        Args:
            runs: runs in ``samples.png``, as far as their images exist.
        """
        rows, label_space = self.results.rows(), self.label_space
        self._save("tradeoff", study_figures.tradeoff(rows), 150)
        bars = study_figures.class_histograms(rows, label_space.names, label_space.forbidden)
        self._save("histograms", bars, 110)
        stores = [(run.label, self.store(run)) for run in runs]
        samples = [(label, *self._first_images(store)) for label, store in stores if store.is_complete]
        if samples:
            self._save("samples", study_figures.sample_rows(samples), 110)
        self.board.add_table("test/results", self.results.columns, rows, len(rows))
        write_whole(self.folder / "results.md", results_markdown(rows, self._notes()).encode())

    @property
    def is_drawn(self) -> bool:
        """Whether ``write_figures`` was called after the last row."""
        table, tables = self.results.path, self.folder / "results.md"
        return not table.exists() or (tables.exists() and tables.stat().st_mtime_ns >= table.stat().st_mtime_ns)

    def summary(self) -> str:
        """The tables for the terminal; empty without a row."""
        rows = self.results.rows()
        texts = [*self._notes(), results_table(rows), safety_table(rows), f"written to {self.folder}"] if rows else []
        return "\n".join(filter(None, texts))

    def _judge_trackers(self, store: SampleStore) -> None:
        """Evaluate the passively tracked posteriors."""
        if not self.trackers:
            return
        became, posteriors = self.label_space.are_forbidden(store.all("labels")), store.all("tracked")
        rows, ends = posterior_metrics.posterior_rows(posteriors, became, list(self.trackers), self.times)
        self.posteriors.add([row | self.drawing for row in rows])
        names = (f"{number}: {name}" for number, name in enumerate(self.trackers.values(), 1))
        self._save("calibration", study_figures.calibration(dict(zip(names, ends, strict=True))), 120)

    def _save(self, name: str, figure: Figure, dpi: int) -> None:
        """Save a figure, and log it at the number of rows so far."""
        figures.save(figure, self.folder / f"{name}.png", dpi)
        self.board.add_figure(f"test/{name}", figure, len(self.results.rows()))

    def _log(self, store: SampleStore, rows: Sequence[dict[str, Any]]) -> None:
        """Write a TensorBoard run for each row; only the first row has sample images and trajectories.

        The step of the scalars is 1,000 × scale, so that a chart of several runs is a curve over the scale.
        """
        names, forbidden = self.label_space.names, self.label_space.forbidden
        reference = {}
        if self.unguided:
            labels = self.store(self.unguided).all("labels")
            reference = {"Unguided": torch.bincount(labels, minlength=len(names)).tolist()}
        for row in rows:
            scale, own = row.get("scale"), list(map(int, row["class_counts"].split()))
            parts = row["method"], str(scale or ""), _hash({name: row[name] for name in KEY}, 6)
            name, step = "-".join(filter(None, parts)), round(1000 * float(scale or 0))
            measures = {tag: row[column] for tag, column in tensorboard.MEASURES.items() if row.get(column) is not None}
            self.board.add_row(f"test/{name}", measures, len(self.results.rows()))
            folder = self.folder / "tensorboard" / name
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
            with SummaryWriter(str(folder)) as writer:
                for tag, value in measures.items():
                    writer.add_scalar(tag, value, step)
                bars = figures.class_bars({row["method"]: own} | reference, names, forbidden)
                writer.add_figure("samples/class_shares", bars, step)
                tensorboard.class_histogram(writer, "samples/class_counts", own, step)
                if row is rows[0]:
                    writer.add_image("samples/first_seeds", figures.framed_grid(*self._first_images(store)), step)
                if store.has("scales"):
                    bands = figures.trajectory_bands(self._trajectories(store))
                    writer.add_figure("trajectories/scale_and_posterior", bands, step)
                settings = {"method": row["method"], "scale": scale, "n": len(self.seeds), "steps": self.steps}
                tensorboard.hyperparameters(writer, settings | {"features": row["features"]} | self.about)

    def _trajectories(self, store: SampleStore) -> TrajectorySet:
        """The trajectories of the first images."""
        labels, scale = store.first("labels", PLOTTED), store.first("scales", PLOTTED)
        posterior = store.first("posterior", PLOTTED) if store.has("posterior") else None
        return TrajectorySet(self.times, scale, posterior, self.label_space.are_forbidden(labels).tolist())

    def _first_images(self, store: SampleStore) -> tuple[Tensor, list[bool]]:
        """The first images, uint8, and which of them are forbidden."""
        return store.first("pixels", SHOWN), self.label_space.are_forbidden(store.first("labels", SHOWN)).tolist()

    def _notes(self) -> list[str]:
        forbidden = self.about.get("forbidden") or ", ".join(
            self.label_space.names[label] for label in self.label_space.forbidden
        )
        seeds = self.drawing["seeds"].replace("-", "–")
        notes = [f"Without {forbidden or 'nothing'}; seeds {seeds}, {self.drawing['steps']} steps."]
        if self.reference is not None:
            hits, total = self.reference.floor(self.label_space.forbidden)
            notes.append(
                f"Real images: {self.reference.data}; features: {self.reference.extractor}. The classifier calls "
                f"{hits} of {total} held-out real images of the retained classes forbidden: its floor."
            )
        return notes


def _hash(identity: Mapping[str, str], digits: int) -> str:
    return hashlib.sha256(json.dumps([identity[name] for name in KEY]).encode()).hexdigest()[:digits]
