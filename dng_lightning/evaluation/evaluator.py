"""Measures the images of several methods, drawn at the same seeds: tables, figures and TensorBoard runs.

An ``Evaluator`` needs no trainer: give it the images of a run batch by batch, then ``finish`` the run. Everything is on
disk, so that any number of processes may add images and an interrupted evaluation goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.evaluation import curves, posterior_metrics, result_board
from dng_lightning.evaluation.comparison import LEAST, measure, per_class
from dng_lightning.evaluation.features import FeatureExtractor
from dng_lightning.evaluation.kinds import Kinds
from dng_lightning.evaluation.real import RealStatistics
from dng_lightning.evaluation.report import results_markdown, results_table, safety_table
from dng_lightning.evaluation.runs import Cost, EvaluationRun, Labels, Samples
from dng_lightning.evaluation.sample_store import SampleStore
from dng_lightning.evaluation.table import Table

COLUMNS = [
    *("method", "scale", "guidance", "n", "seeds", "steps", "features"),
    *("forbidden", "forbidden_low", "forbidden_high", "kl", "kl_low", "kl_high", "kl_uniform"),
    *("kl_own", "kl_own_low", "kl_own_high"),
    *("tv", "fd_retained", "fd_low", "fd_high", "fd_all", "kid", "precision"),
    *("recall", "invasiveness", "invasiveness_features", "histogram"),
    *("evaluations", "images_per_second", "memory_mb"),
]
KEY = ["method", "guidance", "seeds", "steps", "features"]
CLASS_COLUMNS = [*KEY, "class", "share", "kid", "precision", "recall"]
NO_FEATURES = "none"
SHOWN = 24  # images of each method that samples.png shows
PLOTTED = 1000  # images whose trajectories are plotted on TensorBoard

UNGUIDED = EvaluationRun.reference("Unguided")


class Evaluator:
    """Keeps the images of evaluation runs and measures them.

    Args:
        folder: for ``results.csv`` and all that goes with it.
        seeds: of all images, consecutive.
        steps: sampling steps, for the tables.
        kinds: what images are sorted into, and which of it is forbidden.
        label: labels images (B, C, H, W) in [-1, 1].
        extractor: features that images are compared in; None to leave out what needs real images.
        reference: statistics of real images in these features; None to leave out what needs them.
        unguided: the run of the unguided images; None where they are not drawn.
        about: what the TensorBoard runs have in common, such as the model.

    Raises:
        SettingError: no class is left to be drawn, or there are too few images to compare.
    """

    def __init__(
        self,
        folder: Path,
        seeds: range,
        steps: int,
        kinds: Kinds,
        label: Callable[[Tensor], Labels],
        extractor: FeatureExtractor | None = None,
        reference: RealStatistics | None = None,
        unguided: EvaluationRun | None = UNGUIDED,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if not kinds.retained:
            raise SettingError("model.forbidden names every class: leave one to be drawn")
        if extractor is not None and len(seeds) < LEAST:
            raise SettingError(f"precision and recall need {LEAST} images; got {len(seeds)}: raise data.n")
        self.folder, self.seeds, self.steps, self.kinds, self.label = folder, seeds, steps, kinds, label
        self.extractor, self.reference, self.unguided, self.about = extractor, reference, unguided, dict(about or {})
        self.results = Table(folder / "results.csv", [*COLUMNS, *kinds.columns], KEY)
        self.classes = Table(folder / "classes.csv", CLASS_COLUMNS, [*KEY, "class"])
        self.posteriors = Table(folder / "posterior.csv", posterior_metrics.COLUMNS, posterior_metrics.KEY)

    def identity(self, run: EvaluationRun) -> dict[str, Any]:
        """The columns of a row that say what was drawn."""
        features = self.extractor.name if self.extractor else NO_FEATURES
        own = {"method": run.method, "scale": run.scale, "guidance": run.settings, "features": features}
        return own | self._drawing()

    def is_done(self, run: EvaluationRun) -> bool:
        """Whether the run has its row."""
        row = self.identity(run)
        return any(all(str(row[name]) == done[name] for name in KEY) for done in self.results.rows())

    def is_tracked(self, tracker: str) -> bool:
        """Whether the posterior of these settings has its rows."""
        row = self._drawing() | {"tracker": tracker}
        return any(row.items() <= done.items() for done in self.posteriors.rows())

    def store(self, run: EvaluationRun) -> SampleStore:
        """Where the run's images are."""
        key = json.dumps([self.identity(run)[name] for name in KEY])
        name = f"{run.method}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        return SampleStore(self.folder / "drawn" / name, self.seeds)

    def add(self, run: EvaluationRun, samples: Samples, tracked: Tensor | None = None) -> None:
        """Keep a batch of images, labelled.

        Args:
            run: that drew them.
            samples: the batch.
            tracked: log probabilities of passively tracked posteriors, (B, S, W, K); None for none.
        """
        pixels = to_uint8(samples.images)
        found = self.label(to_float(pixels))  # of the pixels that are kept, as the features are
        features = self.extractor(pixels) if self.extractor else torch.zeros(len(pixels), 0)
        if tracked is not None:
            tracked = posterior_metrics.halfway_and_end(tracked, samples.levels)
        trajectories = None
        if run.scale is not None:
            parts = [samples.scale, *([] if samples.posterior is None else [samples.posterior.sum(2)])]
            trajectories = torch.stack(parts, 2).float()
        store = self.store(run)
        store.write(samples.seeds, pixels, found.labels, features, tracked, trajectories, found.attributes)

    def finish(
        self, run: EvaluationRun, cost: Cost, times: Sequence[float], trackers: Mapping[str, str] | None = None
    ) -> None:
        """Measure a run whose images are all there, and write its rows.

        Args:
            run: that drew them.
            cost: of its images.
            times: t / T of its steps, (S,).
            trackers: of the posteriors that were tracked, settings to short name, in their order.

        Raises:
            SettingError: images are missing.
        """
        store = self.store(run)
        store.merge()
        measures = self._measures(run)
        rows = [self.identity(run) | measures | cost.columns()]
        if run == self.unguided:
            passed = 1 - measures["forbidden"]
            if passed:
                rejection = self._measures(run, reject=True)
                rows.append(self.identity(EvaluationRun.reference("Rejection")) | rejection | cost.columns(passed))
            if trackers:
                self._judge(store, trackers, times)
        identity = {name: rows[0][name] for name in KEY}
        self.classes.add([identity | row for row in per_class(store, self.reference, self.kinds.names)])
        self._log(run, rows, times)
        store.keep_only(SHOWN, everything=run == self.unguided)
        self.results.add(rows)

    def write_figures(self, runs: Sequence[EvaluationRun]) -> None:
        """Draw ``tradeoff.png``, ``histograms.png`` and ``samples.png``, and write ``results.md``.

        Args:
            runs: those whose images are shown, where they are there.
        """
        rows, names, forbidden = self.results.rows(), self.kinds.names, self.kinds.forbidden
        curves.tradeoff(rows).savefig(self.folder / "tradeoff.png", dpi=150)
        curves.class_histograms(rows, names, forbidden).savefig(self.folder / "histograms.png", dpi=110)
        samples = []
        for run in runs:
            store = self.store(run)
            if store.is_complete:
                marked = [int(label) in forbidden for label in store.first("labels", SHOWN)]
                samples.append((run.label, store.first("pixels", SHOWN), marked))
        if samples:
            curves.sample_rows(samples).savefig(self.folder / "samples.png", dpi=110)
        (self.folder / "results.md").write_text(results_markdown(rows, self._notes()))

    def summary(self) -> str:
        """The tables, for the terminal."""
        rows = self.results.rows()
        if not rows:
            return ""
        texts = [*self._notes(), results_table(rows), safety_table(rows), f"written to {self.folder}"]
        return "\n".join(text for text in texts if text)

    def _drawing(self) -> dict[str, str]:
        return {"seeds": f"{self.seeds.start}-{self.seeds.stop - 1}", "steps": str(self.steps)}

    def _measures(self, run: EvaluationRun, reject: bool = False) -> dict[str, Any]:
        """All measures of a run's images; with ``reject`` of those that are not forbidden."""
        kinds, store = self.kinds, self.store(run)
        unguided = self.store(self.unguided) if self.unguided else None
        found = measure(store, unguided, self.reference, len(kinds.names), kinds.forbidden, reject, kinds.retained)
        if not kinds.columns:
            return found
        allowed = ~torch.isin(store.all("labels"), torch.tensor(kinds.forbidden))
        return found | kinds.measures(store.all("attributes")[allowed if reject else slice(None)])

    def _judge(self, store: SampleStore, trackers: Mapping[str, str], times: Sequence[float]) -> None:
        """Measure the passively tracked posteriors."""
        became = torch.isin(store.all("labels"), torch.tensor(self.kinds.forbidden))
        middle = min(times, key=lambda time: abs(time - times[0] / 2))
        rows, ends = posterior_metrics.posterior_rows(store.all("posteriors"), became, list(trackers), [middle, 0.0])
        self.posteriors.add([row | self._drawing() for row in rows])
        lines = {
            f"{number}: {name}": end for number, (name, end) in enumerate(zip(trackers.values(), ends, strict=True), 1)
        }
        curves.calibration(lines).savefig(self.folder / "calibration.png", dpi=120)

    def _log(self, run: EvaluationRun, rows: Sequence[dict[str, Any]], times: Sequence[float]) -> None:
        """A TensorBoard run for each row; the first is of the images as they were drawn."""
        kinds, store = self.kinds, self.store(run)
        labels, trajectories = store.first("labels", PLOTTED), store.first("trajectories", PLOTTED)
        is_forbidden = [label in kinds.forbidden for label in labels.tolist()]
        grid = store.first("pixels", SHOWN), is_forbidden[:SHOWN]
        seen = None
        if trajectories.shape[1]:
            posterior = trajectories[..., 1] if trajectories.shape[2] > 1 else None
            seen = result_board.Way(times, trajectories[..., 0], posterior, is_forbidden)
        about = {"n": len(self.seeds), "steps": self.steps, "features": rows[0]["features"]} | self.about
        reference = {}
        if self.unguided:
            found = torch.bincount(self.store(self.unguided).all("labels"), minlength=len(kinds.names))
            reference = {"Unguided": found.tolist()}
        for row in rows:
            own = {name: value for name, value in json.loads(row["guidance"]).items() if name != "class"}
            settings = {"method": row["method"], "scale": row["scale"]} | own | about
            counts = {row["method"]: list(map(int, row["histogram"].split()))} | reference
            key = hashlib.sha256(json.dumps([row[name] for name in KEY]).encode()).hexdigest()[:6]
            folder = self.folder / "board" / "-".join(filter(None, [row["method"], str(row["scale"] or ""), key]))
            shown = grid if row is rows[0] else None
            result_board.write(folder, settings, row, counts, kinds.names, kinds.forbidden, shown, seen)

    def _notes(self) -> list[str]:
        forbidden = ", ".join(self.kinds.names[label] for label in self.kinds.forbidden)
        forbidden = str(self.about.get("forbidden", forbidden))
        notes = [f"Without {forbidden}; seeds {self.seeds.start}–{self.seeds.stop - 1}, {self.steps} steps."]
        if self.reference is not None:
            hits, total = self.reference.floor(self.kinds.forbidden)
            notes.append(
                f"Real images: {self.reference.data}; features: {self.reference.extractor}. The classifier calls "
                f"{hits} of {total} held-out real images of the retained classes forbidden: its floor."
            )
        return notes
