"""Turns the images of ``dng test`` into tables and figures, a row a guidance, and keeps them as they grow."""

import hashlib
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dng_lightning.callbacks import compared_with, trackers
from dng_lightning.callbacks.memory import PeakMemory
from dng_lightning.data.pixels import to_uint8
from dng_lightning.data.seeds import Seeds
from dng_lightning.errors import SettingError
from dng_lightning.evaluation import curves, foretold, result_board
from dng_lightning.evaluation.comparison import LEAST, measure, per_class
from dng_lightning.evaluation.drawn import Drawn
from dng_lightning.evaluation.kinds import Kinds
from dng_lightning.evaluation.report import results_markdown, results_table, safety_table
from dng_lightning.evaluation.result_board import Way
from dng_lightning.evaluation.table import Table
from dng_lightning.guidance.naming import unusual
from dng_lightning.guidance.watching import Watching
from dng_lightning.modules import pretrained
from dng_lightning.modules.image_sampler import ImageSampler, Samples
from dng_lightning.modules.passes import Pass

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
DRAWING = 0.05  # share of the time that goes into redrawing the figures, at most
LOOKED_AT = 1000  # images whose way to the end is shown on TensorBoard


class ResultsWriter(Callback):
    """Writes below the trainer's ``default_root_dir``, as soon as a guidance is done; the figures not quite as often.

    ``results.csv`` (a row a guidance), ``results.md``, ``classes.csv`` (quality class by class), ``posterior.csv``
    (how well the tracked posteriors foretell what unguided images become), and the figures ``tradeoff.png``,
    ``histograms.png``, ``samples.png`` and ``calibration.png``. For ``tensorboard --logdir`` a run a row is in
    ``board``, the images themselves are in ``drawn``. A guidance that has its row, for the same seeds, steps
    and features, is not done again. In a table of an earlier version, which does not say of which features it is, what
    was measured at all counts as measured in the classifier's.

    ``memory_mb`` is the most memory that a row's images and their features took, on the device of the first process:
    what CUDA handed out, or all that the process held, empty where nobody counts it.

    Besides the guidances there are the unguided images and, made of them, those that a filter would let pass; a measure
    for which it lets too few pass is left empty.

    Args:
        features: what images are compared in: the ``classifier``'s penultimate layer, or ``inception`` (then the
            Fréchet distance is FID); None to leave out what needs real images.
        inception_weights: a file with Inception's weights; None to download them.
        unguided: draw the unguided images too. Without them an evaluation of few rows takes half the time, and says
            nothing of rejection, of how far images were moved and of how well posteriors foretold.

    Raises:
        SettingError: there are no such features.
    """

    def __init__(
        self, features: str | None = "classifier", inception_weights: str | None = None, unguided: bool = True
    ) -> None:
        if features not in ("classifier", "inception", None):
            raise SettingError(f"features must be classifier, inception or null; got {features}")
        self.features, self.inception_weights, self.unguided = features, inception_weights, unguided

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the real images' statistics, and leave out the passes that are done.

        Raises:
            SettingError: nobody can label the images, no class is left to draw, there are too few images to compare,
                or no statistics of real images that fit.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.test
        assert isinstance(pl_module, ImageSampler)
        assert isinstance(data, Seeds)
        if pl_module.classifier is None:
            raise SettingError(
                "dng test needs a classifier to label the images: set model.classifier, or for prompts model.reader "
                "and model.negative_prompt"
            )
        if not pl_module.kinds.retained:
            raise SettingError("model.forbidden names every class: leave one to be drawn")
        pl_module.to(trainer.strategy.root_device)  # the trainer would, but only once the real images are looked at
        self.folder, self.seeds = Path(trainer.default_root_dir), data.seeds
        self.sampled, self.drawing = 0.0, 0.0  # seconds since the figures were drawn, and what that took
        renew = partial(_with_features, classifier=pl_module.classifier_name)
        self.results = Table(self.folder / "results.csv", [*COLUMNS, *pl_module.kinds.columns], KEY, renew)
        self.classes = Table(self.folder / "classes.csv", CLASS_COLUMNS, [*KEY, "class"], renew)
        self.posteriors = Table(self.folder / "posterior.csv", foretold.COLUMNS, foretold.KEY)
        self.extractor = compared_with.extractor(self.features, self.inception_weights, pl_module)
        if self.extractor is not None and len(self.seeds) < LEAST:
            raise SettingError(f"precision and recall need {LEAST} images; got {len(self.seeds)}: raise data.n")
        self.real = compared_with.real_images(trainer, pl_module, data, self.extractor) if self.extractor else None
        self.watched = trackers.watched(pl_module.guidances, pl_module.unguided) if self.unguided else []
        pl_module.todo = self._todo(pl_module)
        data.passes = len(pl_module.todo)
        trainer.strategy.barrier("finished guidances")  # nobody writes before everybody has looked

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock; before a guidance's first batch, forget what an interrupted run left of it."""
        assert isinstance(pl_module, ImageSampler)
        if batch_idx == 0:
            self.seconds, self.memory = 0.0, PeakMemory(pl_module.device)
            if trainer.is_global_zero:
                self._drawn(pl_module.todo[dataloader_idx], pl_module).clear()
            trainer.strategy.barrier("cleared")
        self.began = time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the images; after a guidance's last batch, write its row and redraw the figures."""
        assert isinstance(pl_module, ImageSampler)
        samples: Samples = outputs["samples"]
        pixels = to_uint8(samples.images).cpu()  # waits for what a device still has to do: the clock must not miss it
        self.seconds += time.perf_counter() - self.began
        todo = pl_module.todo[dataloader_idx]
        drawn = self._drawn(todo, pl_module)
        self._keep(samples, pixels, drawn, todo)
        if batch_idx + 1 < trainer.num_test_batches[dataloader_idx]:
            return
        seconds = float(trainer.strategy.reduce(torch.tensor(self.seconds, device=pl_module.device), reduce_op="mean"))
        trainer.strategy.barrier("drawn")
        if trainer.is_global_zero:
            drawn.merge()
            self._finish(todo, drawn, pl_module, samples, seconds)
        trainer.strategy.barrier("row")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show the table."""
        if not (trainer.is_global_zero and hasattr(self, "watched") and (rows := self.results.rows())):
            return
        assert isinstance(pl_module, ImageSampler)
        texts = [*self._notes(pl_module), results_table(rows), safety_table(rows), f"written to {self.folder}"]
        print("\n".join(text for text in texts if text))

    def _keep(self, samples: Samples, pixels: Tensor, drawn: Drawn, todo: Pass) -> None:
        posterior = samples.posterior
        assert samples.labels is not None
        features = self.extractor(pixels) if self.extractor else torch.zeros(len(pixels), 0)
        watched, way = torch.zeros(len(pixels), 0), None
        if isinstance(todo.guidance, Watching) and posterior is not None:
            watched = foretold.kept(posterior, samples.levels, len(self.watched))
        elif todo.scale is not None:
            way = torch.stack([samples.scale, *([posterior.sum(2)] if posterior is not None else [])], 2)
        drawn.write(samples.seeds, pixels, samples.labels, features, watched, way, samples.read)

    def _finish(self, done: Pass, drawn: Drawn, module: ImageSampler, samples: Samples, seconds: float) -> None:
        unguided = self._drawn(module.passes()[0], module) if self.unguided else None
        evaluations = samples.evaluations
        if isinstance(done.guidance, Watching):  # what the trackers that look on need is not the images' cost
            needed = float(module.sampler.steps * (1 + module.unguided.needs.null))
            seconds *= needed / evaluations
            evaluations = needed
        speed = len(self.seeds) / seconds
        cost = {"evaluations": evaluations, "images_per_second": speed, "memory_mb": self.memory.mb()}
        kinds = module.kinds
        measures = self._measures(drawn, unguided, kinds)
        rows = [self._identity(done, module) | measures | cost]
        if done.method == "Unguided":
            passed = 1 - measures["forbidden"]
            if passed:
                rejection = self._measures(drawn, unguided, kinds, reject=True)
                cost |= {"evaluations": evaluations / passed, "images_per_second": passed * speed}
                rows.append(self._identity(Pass("Rejection", done.guidance), module) | rejection | cost)
            self._judge(drawn, module, samples.levels)
        identity = {name: rows[0][name] for name in KEY}
        self.classes.add([identity | row for row in per_class(drawn, self.real, kinds.names)])
        self._log(rows, drawn, unguided, module, samples.levels)
        drawn.keep_only(SHOWN, everything=done.method == "Unguided")
        self.results.add(rows)
        self.sampled += self.seconds
        if done is module.todo[-1] or self.drawing <= DRAWING * self.sampled:
            began = time.perf_counter()
            self._draw(module)
            self.sampled, self.drawing = 0.0, time.perf_counter() - began

    def _measures(self, drawn: Drawn, unguided: Drawn | None, kinds: Kinds, reject: bool = False) -> dict[str, Any]:
        """All measures of a set of images; with ``reject`` of those that are not forbidden."""
        found = measure(drawn, unguided, self.real, len(kinds.names), kinds.forbidden, reject, kinds.retained)
        if not kinds.columns:
            return found
        fine = ~torch.isin(drawn.all("labels"), torch.tensor(kinds.forbidden))
        return found | kinds.measures(drawn.all("read")[fine if reject else slice(None)])

    def _log(
        self, rows: list[dict[str, Any]], drawn: Drawn, unguided: Drawn | None, module: ImageSampler, levels: list[int]
    ) -> None:
        """A run on TensorBoard for each row; the first is of the images as they were drawn."""
        kinds, labels, way = module.kinds, drawn.first("labels", LOOKED_AT), drawn.first("way", LOOKED_AT)
        is_forbidden = [label in kinds.forbidden for label in labels.tolist()]
        grid = drawn.first("pixels", SHOWN), is_forbidden[:SHOWN]
        seen = None
        if way.shape[1]:
            posterior = way[..., 1] if way.shape[2] > 1 else None
            seen = Way(levels, module.schedule.T, way[..., 0], posterior, is_forbidden)
        told: dict[str, Any] = {"n": len(self.seeds), "steps": module.sampler.steps, "features": rows[0]["features"]}
        told |= {
            "model": pretrained.name_of(module.checkpoint),
            "forbidden": ", ".join(module.class_names[label] for label in module.forbidden),
        }
        others = [("Unguided", unguided)] if unguided is not None else []
        length = len(kinds.names)
        reference = {name: torch.bincount(one.all("labels"), minlength=length).tolist() for name, one in others}
        for row in rows:
            own = {name: v for name, v in json.loads(row["guidance"]).items() if v != [] and name != "class"}
            said = {"method": row["method"]} | own | told
            counts = {row["method"]: list(map(int, row["histogram"].split()))} | reference
            key = hashlib.sha256(json.dumps([row[name] for name in KEY]).encode()).hexdigest()[:6]
            folder = self.folder / "board" / "-".join(filter(None, [row["method"], str(row["scale"] or ""), key]))
            shown = grid if row is rows[0] else None
            result_board.write(folder, said, row, counts, kinds.names, kinds.forbidden, shown, seen)

    def _judge(self, drawn: Drawn, module: ImageSampler, levels: list[int]) -> None:
        """The posteriors of the trackers that looked on."""
        if not self.watched:
            return
        became = torch.isin(drawn.all("labels"), torch.tensor(module.kinds.forbidden))
        named = [trackers.tracker(guidance) for guidance in self.watched]
        rows, ends = foretold.judged(drawn.all("watched"), became, named, levels)
        self.posteriors.add([row | self._place(module) for row in rows])
        labels = [f"{number}: {trackers.label(guidance)}" for number, guidance in enumerate(self.watched, 1)]
        lines = dict(zip(labels, ends, strict=True))
        curves.calibration(lines).savefig(self.folder / "calibration.png", dpi=120)

    def _draw(self, module: ImageSampler) -> None:
        rows, names, forbidden = self.results.rows(), module.kinds.names, module.kinds.forbidden
        curves.tradeoff(rows).savefig(self.folder / "tradeoff.png", dpi=150)
        curves.class_histograms(rows, names, forbidden).savefig(self.folder / "histograms.png", dpi=110)
        samples = []
        for todo in module.passes():
            drawn = self._drawn(todo, module)
            if drawn.is_complete:
                marked = [int(label) in forbidden for label in drawn.first("labels", SHOWN)]
                samples.append((todo.label, drawn.first("pixels", SHOWN), marked))
        curves.sample_rows(samples).savefig(self.folder / "samples.png", dpi=110)
        (self.folder / "results.md").write_text(results_markdown(rows, self._notes(module)))

    def _notes(self, module: ImageSampler) -> list[str]:
        forbidden = ", ".join(module.class_names[label] for label in module.forbidden)
        notes = [f"Without {forbidden}; seeds {self.seeds.start}–{self.seeds.stop - 1}, {module.sampler.steps} steps."]
        if self.real is not None:
            hits, total = self.real.floor(module.kinds.forbidden)
            notes.append(
                f"Real images: {self.real.data}; features: {self.real.extractor}. The classifier calls {hits} of "
                f"{total} held-out real images of the retained classes forbidden: its floor."
            )
        return notes

    def _todo(self, module: ImageSampler) -> list[Pass]:
        """The passes that have no row; that of the unguided images also where it is needed again."""
        place = self._place(module)
        done = [_known(row) for row in self.results.rows()]
        judged = [row["tracker"] for row in self.posteriors.rows() if place.items() <= row.items()]
        missing = [p for p in module.passes() if _known(self._identity(p, module)) not in done]
        unguided, *others = module.passes()
        others = [p for p in others if p in missing]
        if not self.unguided:
            return others
        is_known = unguided not in missing and all(trackers.tracker(guidance) in judged for guidance in self.watched)
        if is_known and (not others or self._drawn(unguided, module).is_complete):
            return others
        return [Pass("Unguided", Watching(self.watched, module.unguided)) if self.watched else unguided, *others]

    def _identity(self, todo: Pass, module: ImageSampler) -> dict[str, Any]:
        """The columns of a row that say what was done."""
        features = self.extractor.name if self.extractor else NO_FEATURES
        own = {"method": todo.method, "scale": todo.scale, "guidance": todo.settings, "features": features}
        return own | self._place(module)

    def _place(self, module: ImageSampler) -> dict[str, str]:
        return {"seeds": f"{self.seeds.start}-{self.seeds.stop - 1}", "steps": str(module.sampler.steps)}

    def _drawn(self, todo: Pass, module: ImageSampler) -> Drawn:
        identity = self._identity(todo, module)
        key = json.dumps(_known(identity))
        return Drawn(
            self.folder / "drawn" / f"{todo.method}-{hashlib.sha256(key.encode()).hexdigest()[:12]}", self.seeds
        )


def _known(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row is known by; a setting that is as it comes says nothing."""
    return row["method"], unusual(row["guidance"]), row["seeds"], row["steps"], row["features"]


def _with_features(rows: list[dict[str, str]], classifier: str) -> list[dict[str, str]]:
    """Rows of a table from before it named the features: those of a guidance that was measured are the classifier's.

    A single row does not tell: of too few images, or of an empty class, it is without measures whatever the features.
    """
    measured = {_known(row) for row in rows if row["kid"]}
    return [
        row | {"features": row["features"] or (classifier if _known(row) in measured else NO_FEATURES)} for row in rows
    ]
