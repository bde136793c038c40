"""Writes the images of ``dng predict`` as they come, and draws what there is to see of them."""

import csv
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from dng_lightning.callbacks.progress import SamplingProgress
from dng_lightning.callbacks.requirements import sampler_of, seeds_of
from dng_lightning.data.pixels import from_png, to_float, to_png, to_uint8
from dng_lightning.evaluation import plots
from dng_lightning.evaluation.metrics import wilson_interval
from dng_lightning.evaluation.report import class_table, cost_table
from dng_lightning.evaluation.runs import Samples
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.serialization import display_name, display_name_with_scale
from dng_lightning.modules.image_sampler import ImageSampler


class ImageWriter(BasePredictionWriter):
    """Writes below the trainer's ``default_root_dir``, and continues there after an interruption.

    For each image ``NNNNNNNN.png``, named by its seed, and ``records/NNNNNNNN.json`` with its label and, for the images
    shown, its trajectory; an image is finished once its record is there. At the end ``labels.csv``, ``grid.png``
    (the images shown beside those of the same seeds that are unguided, or guided by the methods that the module is
    compared with; forbidden ones framed) and ``trajectories.png``. What each method cost is printed.

    Args:
        shown: how many images, from the first seed on, are drawn unguided as well and shown in the figures.

    Attributes:
        costs: for each method the images that it drew here and now, and the evaluations and seconds that it took.
    """

    def __init__(self, shown: int = 64) -> None:
        super().__init__("batch")
        self.shown = shown
        self.costs: dict[str, tuple[int, float, float]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out which images are finished."""
        super().setup(trainer, pl_module, stage)
        self.folder, module, seeds = (
            Path(trainer.default_root_dir),
            sampler_of(pl_module, self),
            seeds_of(trainer, self),
        )
        seeds.finished = {seed for seed in seeds.seeds if self._is_finished(trainer, module, seed)}
        trainer.strategy.barrier("finished images")  # nobody writes before everybody has looked

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the progress, all images together."""
        module, seeds = sampler_of(pl_module, self), seeds_of(trainer, self)
        new = [seed for seed in seeds.seeds if seed not in seeds.finished]
        images = len(new) + sum(self._is_shown(trainer, seed) for seed in new) * len(_beside(module))
        self.progress = SamplingProgress(trainer, -(-images // trainer.world_size), module.sampler.steps)
        module.recorders = [self.progress]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the progress off the screen."""
        self.progress.close()

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Samples,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch's images and records, those that they are compared with first."""
        module = sampler_of(pl_module, self)
        pixels = self._pixels(display_name(module.guidance), prediction)
        new = [seed for seed in prediction.seeds if seed not in seeds_of(trainer, self).finished]
        shown = [seed for seed in new if self._is_shown(trainer, seed)]
        for name, method in _beside(module).items() if shown else ():
            self.began = time.perf_counter()
            twins = module.draw(shown, method)
            self._write(twins, self._pixels(name, twins), shown, module, self.folder / _file_name(name), set())
        self._write(prediction, pixels, new, module, self.folder, set(shown))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Summarise what is finished, once all devices are done (or interrupted)."""
        trainer.strategy.barrier("all images")
        if not trainer.is_global_zero or not isinstance(pl_module, ImageSampler):
            return
        paths = (self._record(seed) for seed in seeds_of(trainer, self).seeds)
        records = [json.loads(path.read_text()) for path in paths if path.exists()]
        if records:
            self._summarise(records, [r for r in records if self._is_shown(trainer, r["seed"])], pl_module)

    def _pixels(self, name: str, samples: Samples) -> Tensor:
        """The images once they are there, and the clock stopped for a method that drew them."""
        pixels, drawn = to_uint8(samples.images).cpu(), len(samples.seeds)
        images, evaluations, seconds = self.costs.get(name, (0, 0.0, 0.0))
        seconds += time.perf_counter() - self.began
        self.costs[name] = images + drawn, evaluations + drawn * samples.nfe, seconds
        return pixels

    def _write(
        self,
        samples: Samples,
        images: Tensor,
        new: list[int],
        module: ImageSampler,
        folder: Path,
        with_trajectory: set[int],
    ) -> None:
        (folder / "records").mkdir(parents=True, exist_ok=True)
        found = module.label(to_float(images).to(module.device))  # of the pixels that are written
        for i, (seed, pixels) in enumerate(zip(samples.seeds, images, strict=True)):
            if seed not in new:  # drawn again to keep a device busy
                continue
            record: dict[str, Any] = {"seed": seed, "wanted": module.wanted_label(seed)}
            if found is not None:
                record |= {"label": int(found.labels[i]), "confidence": round(float(found.confidence[i]), 6)}
            attributes = module.read(to_float(images).to(module.device)) if found is None else found.attributes
            if attributes is not None:
                record["read"] = attributes[i].tolist()
            if samples.posterior is not None:
                record["posterior"] = float(samples.posterior[i, -1].sum())
            if seed in with_trajectory:
                times = [module.schedule.fraction(level) for level in samples.levels]
                record |= {"times": times, "scales": samples.scale[i].tolist()}
                record["posteriors"] = samples.posterior[i].sum(1).tolist() if samples.posterior is not None else None
            _replace(folder / f"{seed:08d}.png", to_png(pixels))
            _replace(folder / "records" / f"{seed:08d}.json", json.dumps(record).encode())

    def _summarise(self, records: list[dict[str, Any]], shown: list[dict[str, Any]], module: ImageSampler) -> None:
        kinds, conditions = module.kinds, module.class_names
        with (self.folder / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seed", "label", "confidence", "posterior", "wanted"])
            for record in records:
                pairs = ((kinds.names, record.get("label")), (conditions, record["wanted"]))
                texts = ["" if number is None else names[number] for names, number in pairs]
                row = [record["seed"], texts[0], record.get("confidence", ""), record.get("posterior", ""), texts[1]]
                writer.writerow(row)
        columns, beside = {display_name(module.guidance): records}, _beside(module)
        if shown:
            panels = {display_name(module.guidance): self._grid(shown, module, self.folder)}
            for name in reversed(beside):
                below = _file_name(name)
                twins = [json.loads(self._record(record["seed"], below).read_text()) for record in shown]
                columns = {f"{len(twins)} {name}": twins, **columns}
                panels = {name: self._grid(twins, module, self.folder / below), **panels}
            plots.side_by_side(panels).savefig(self.folder / "grid.png", dpi=150)
            scale = torch.tensor([record["scales"] for record in shown])
            tracked = all(record["posteriors"] for record in shown)
            posterior = torch.tensor([record["posteriors"] for record in shown]) if tracked else None
            is_forbidden = [record.get("label") in module.kinds.forbidden for record in shown]
            figure = plots.trajectories(shown[0]["times"], posterior, scale, is_forbidden)
            figure.savefig(self.folder / "trajectories.png", dpi=150)
        if module.judge is not None:
            labels = {name: [record["label"] for record in rows] for name, rows in columns.items()}
            print(class_table(labels, kinds.names, kinds.forbidden))
            if module.wanted and kinds.names == tuple(conditions):
                agreed = sum(record["label"] == record["wanted"] for record in records)
                low, high = wilson_interval(agreed, len(records))
                share = f"{agreed / len(records):.1%} [{low:.1%}, {high:.1%}]"
                print(f"the classifier sees the wanted class in {agreed} of {len(records)} images, {share}")
        for name, rows in columns.items():
            seen = [(record["read"], record["wanted"]) for record in rows if "read" in record]
            if seen and (words := kinds.summary(*map(torch.tensor, zip(*seen, strict=True)))):
                print(f"{name}: {words}")
        if self.costs:  # where nothing is left to be drawn there are none
            print(
                cost_table(
                    {name: self.costs[name] for name in (*beside, display_name(module.guidance)) if name in self.costs}
                )
            )
        print(f"written to {self.folder}")

    def _grid(self, records: list[dict[str, Any]], module: ImageSampler, folder: Path) -> Tensor:
        images = torch.stack([from_png(folder / f"{record['seed']:08d}.png") for record in records])
        return plots.framed_grid(images, [record.get("label") in module.kinds.forbidden for record in records])

    def _is_finished(self, trainer: Trainer, module: ImageSampler, seed: int) -> bool:
        """Whether nothing is missing of an image; it may be shown now and not have been when it was drawn."""
        if not self._record(seed).exists() or not self._is_shown(trainer, seed):
            return self._record(seed).exists()
        has_twins = all(self._record(seed, _file_name(name)).exists() for name in _beside(module))
        return has_twins and "times" in json.loads(self._record(seed).read_text())

    def _is_shown(self, trainer: Trainer, seed: int) -> bool:
        return seed - seeds_of(trainer, self).seeds.start < self.shown

    def _record(self, seed: int, *below: str) -> Path:
        return Path(self.folder, *below, "records", f"{seed:08d}.json")


def _beside(module: ImageSampler) -> dict[str, Guidance]:
    """What the images of a module are shown beside, each method by its name."""
    methods = {"unguided": module.unguided} | {display_name_with_scale(method): method for method in module.compared}
    return {name: method for name, method in methods.items() if method != module.guidance}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name)


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step, so that no reader ever sees half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
