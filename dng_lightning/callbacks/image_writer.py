"""Writes the images of ``dng predict`` batch by batch, and their figures at the end."""

import contextlib
import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from dng_lightning.callbacks.drawing import DrawingCallback
from dng_lightning.callbacks.requirements import is_dry_run
from dng_lightning.data.pixels import from_png, to_float, to_png, to_uint8
from dng_lightning.errors import check_at_least
from dng_lightning.evaluation import figures
from dng_lightning.evaluation.results_file import csv_text
from dng_lightning.evaluation.runs import Samples
from dng_lightning.evaluation.tables import class_table, cost_table, share_with_interval
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.serialization import display_name, display_name_with_scale
from dng_lightning.modules.image_sampler import ImageSampler
from dng_lightning.storage.files import file_name, write_whole

Records = list[dict[str, Any]]


class ImageWriter(DrawingCallback):
    """Writes below the trainer's ``default_root_dir``, and continues there after an interruption.

    Each image is ``NNNNNNNN.png``, named by its seed, with its label in ``records/NNNNNNNN.json``; an image is finished
    once its record is there. At the end ``labels.csv``, ``grid.png`` (the first images next to the unguided ones and
    the baselines of the same seeds; forbidden images have a red frame) and ``trajectories.png`` (posterior and scale of
    the first images) are written, and the cost of each method is printed.

    Args:
        num_shown: number of images in the figures, from the first seed on; each is sampled unguided as well.

    Attributes:
        costs: number of images of this run, network evaluations and seconds, by method.
    """

    def __init__(self, num_shown: int = 64) -> None:
        check_at_least(0, num_shown=num_shown)
        self.num_shown = num_shown
        self.costs: dict[str, tuple[int, float, float]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the finished images."""
        super().setup(trainer, pl_module, stage)
        if is_dry_run(trainer, self):
            return
        self.check_shared(trainer)
        seeds = self.data.seeds
        self.folder, self.shown_seeds = Path(trainer.default_root_dir), seeds[: self.num_shown]
        self.name, self.baselines = display_name(self.module.guidance), _baselines(self.module)
        self.finished = self.data.finished = {seed for seed in seeds if self._is_finished(seed)}
        trainer.strategy.barrier("finished images")  # no process writes before all have searched

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the progress, all images together."""
        new = [seed for seed in self.data.seeds if seed not in self.finished]
        images = len(new) + sum(seed in self.shown_seeds for seed in new) * len(self.baselines)
        self.show_progress(trainer, -(-images // trainer.world_size))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Write the images and records of a batch, those of the baselines first."""
        pixels = self._pixels(self.name, outputs)
        new = [seed for seed in outputs.seeds if seed not in self.finished]
        shown = [seed for seed in new if seed in self.shown_seeds]
        for name, method in self.baselines.items() if shown else ():
            self.began = time.perf_counter()
            twins = self.module.draw(shown, method)
            self._write(self._folder(name), twins, self._pixels(name, twins), shown)
        self._write(self.folder, outputs, pixels, new, shown)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Summarise the finished images, when all devices are done (or interrupted)."""
        trainer.strategy.barrier("all images")
        if not trainer.is_global_zero or not hasattr(self, "folder"):  # the setup failed
            return
        records = self._records(self.data.seeds)
        if not records:
            return
        shown = [record for record in records if record["seed"] in self.shown_seeds]
        others = {name: self._records([r["seed"] for r in shown], self._folder(name)) for name in self.baselines}
        self._write_table(records)
        if shown:
            self._write_figures({**others, self.name: shown})
        self._print({**{f"{len(own)} {name}": own for name, own in others.items() if own}, self.name: records})

    def _pixels(self, name: str, samples: Samples) -> Tensor:
        """The pixels on the CPU; stops the clock of the method and adds its cost."""
        pixels, count = to_uint8(samples.images).cpu(), len(samples.seeds)
        images, nfe, seconds = self.costs.get(name, (0, 0.0, 0.0))
        self.costs[name] = images + count, nfe + count * samples.nfe, seconds + time.perf_counter() - self.began
        return pixels

    def _write(
        self, folder: Path, samples: Samples, pixels: Tensor, new: Collection[int], followed: Collection[int] = ()
    ) -> None:
        """Write the images of the ``new`` seeds, some with their trajectories; the others fill a device's batch."""
        (folder / "records").mkdir(parents=True, exist_ok=True)
        module, images = self.module, to_float(pixels).to(samples.images.device)  # of the written pixels
        found = module.judge.label(images) if module.judge else None
        attributes = found.attributes if found else module.read(images)
        for i, seed in enumerate(samples.seeds):
            if seed not in new:
                continue
            record: dict[str, Any] = {"seed": seed, "class_label": module.class_label(seed)}
            if found is not None:
                record |= {"label": int(found.labels[i]), "confidence": round(float(found.confidence[i]), 6)}
            if attributes is not None:
                record["read"] = attributes[i].tolist()
            posteriors = None if samples.posterior is None else samples.posterior[i].sum(1).tolist()
            if posteriors:
                record["posterior"] = posteriors[-1]
            if seed in followed:
                record |= {"times": samples.times, "scales": samples.scale[i].tolist(), "posteriors": posteriors}
            write_whole(folder / f"{seed:08d}.png", to_png(pixels[i]))
            write_whole(self._record(seed, folder), json.dumps(record).encode())

    def _write_table(self, records: Records) -> None:
        columns = ["seed", "file", "label", "confidence", "posterior", "class_label"]
        labels, classes = (dict(enumerate(names)) for names in (self.module.label_space.names, self.module.class_names))
        rows = []
        for record in records:
            named = {"label": labels.get(record.get("label", -1)), "class_label": classes.get(record["class_label"])}
            row = record | {"file": f"{record['seed']:08d}.png"} | named
            rows.append({name: row.get(name) for name in columns})
        write_whole(self.folder / "labels.csv", csv_text(columns, rows).encode())

    def _write_figures(self, columns: dict[str, Records]) -> None:
        """Draw the images of all methods side by side, and the trajectories of the module's guidance, the last one."""
        forbidden = self.module.label_space.forbidden
        marked = {name: [record.get("label") in forbidden for record in own] for name, own in columns.items()}
        panels = {}
        for name, records in columns.items():
            folder = self.folder if name == self.name else self._folder(name)
            images = [from_png(folder / f"{record['seed']:08d}.png") for record in records]
            panels[name] = figures.framed_grid(torch.stack(images), marked[name])
        figures.save(figures.side_by_side(panels), self.folder / "grid.png", 150)
        shown = columns[self.name]
        scale, tracked = torch.tensor([record["scales"] for record in shown]), [r["posteriors"] for r in shown]
        posterior = torch.tensor(tracked) if all(tracked) else None
        trajectories = figures.TrajectorySet(shown[0]["times"], scale, posterior, marked[self.name])
        figures.save(figures.trajectories(trajectories), self.folder / "trajectories.png", 150)

    def _print(self, columns: dict[str, Records]) -> None:
        module, label_space, records = self.module, self.module.label_space, columns[self.name]
        if module.judge is not None:
            labels = {name: [record["label"] for record in own] for name, own in columns.items()}
            print(class_table(labels, label_space.names, label_space.forbidden))
            if module.class_labels and label_space.names == tuple(module.class_names):
                agreed = sum(record["label"] == record["class_label"] for record in records)
                share = share_with_interval(agreed, len(records))
                print(f"the classifier sees the requested class in {agreed} of {len(records)} images, {share}")
        for name, own in columns.items():
            seen = [(record["read"], record["class_label"]) for record in own if "read" in record]
            if seen and (words := label_space.summary(*map(torch.tensor, zip(*seen, strict=True)))):
                print(f"{name}: {words}")
        if self.costs:  # empty if no images were left to draw
            print(cost_table({name: self.costs[name] for name in (*self.baselines, self.name) if name in self.costs}))
        print(f"written to {self.folder}")

    def _is_finished(self, seed: int) -> bool:
        """Whether an image is complete; shown ones need baselines and a trajectory, which an earlier run may lack."""
        record = _read(self._record(seed))
        if record is None or seed not in self.shown_seeds:
            return record is not None
        twins = [self._folder(name) for name in self.baselines]
        are_whole = all(_is_image(folder / f"{seed:08d}.png") for folder in (self.folder, *twins))
        return are_whole and "times" in record and all(_read(self._record(seed, folder)) for folder in twins)

    def _folder(self, name: str) -> Path:
        """Folder of the images of a baseline."""
        return self.folder / file_name(name)

    def _record(self, seed: int, folder: Path | None = None) -> Path:
        return (folder or self.folder) / "records" / f"{seed:08d}.json"

    def _records(self, seeds: Sequence[int], folder: Path | None = None) -> Records:
        return [record for seed in seeds if (record := _read(self._record(seed, folder)))]


def _is_image(path: Path) -> bool:
    """Whether an image is there and not damaged."""
    try:
        from_png(path)
    except Exception:  # a damaged file can fail in any way
        return False
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """The record of an image; None if it is missing or damaged, so that the image is sampled again."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.read_bytes())
        if isinstance(record, dict) and record.get("seed") == int(path.stem):
            return record
    return None


def _baselines(module: ImageSampler) -> dict[str, Guidance]:
    """The unguided method and the baselines for the figures, by name."""
    methods = {"unguided": module.unguided} | {display_name_with_scale(method): method for method in module.baselines}
    return {name: method for name, method in methods.items() if method != module.guidance}
