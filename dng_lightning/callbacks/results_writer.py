"""Turns the images of ``dng test`` into a table, one row a guidance, and keeps it as it grows."""

import csv
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dng_lightning.data.seeds import Seeds
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.metrics import forbidden_rate, kl_divergence, total_variation
from dng_lightning.evaluation.report import results_table
from dng_lightning.guidance import Guidance
from dng_lightning.modules.guided_sampler import GuidedSampler, Samples

COLUMNS = [
    "method",
    "scale",
    "guidance",
    "n",
    "seeds",
    "steps",
    "forbidden",
    "forbidden_low",
    "forbidden_high",
    "kl",
    "kl_uniform",
    "tv",
    "histogram",
    "evaluations",
    "images_per_second",
]


class ResultsWriter(Callback):
    """Writes ``results.csv`` below the trainer's ``default_root_dir``: a row as soon as a guidance is done.

    A guidance that has its row there, for the same seeds and settings, is not done again.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave out the guidances that are done.

        Raises:
            SettingError: there is no classifier to label the images.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.test
        assert isinstance(pl_module, GuidedSampler)
        assert isinstance(data, Seeds)
        if pl_module.classifier is None:
            raise SettingError("dng test needs a classifier to label the images: set model.classifier")
        self.path = Path(trainer.default_root_dir) / "results.csv"
        self.seeds = f"{data.seeds.start}-{data.seeds.stop - 1}"
        done = {(row["guidance"], row["seeds"], row["steps"]) for row in self._rows()}
        todo = [g for g in pl_module.guidances if self._key(g, pl_module) not in done]
        trainer.strategy.barrier("finished guidances")  # nobody writes before everybody has looked
        pl_module.guidances, data.passes = todo, len(todo)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start counting when a guidance starts."""
        if batch_idx == 0:
            assert isinstance(pl_module, GuidedSampler)
            self.counts = torch.zeros(len(pl_module.class_names), dtype=torch.long, device=pl_module.device)
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
        """Count the labels; write a row after a guidance's last batch."""
        assert isinstance(pl_module, GuidedSampler)
        samples: Samples = outputs["samples"]
        assert samples.labels is not None
        self.counts += torch.bincount(samples.labels, minlength=len(self.counts))
        if batch_idx + 1 < trainer.num_test_batches[dataloader_idx]:
            return
        counts = trainer.strategy.reduce(self.counts, reduce_op="sum").tolist()
        guidance, forbidden = pl_module.guidances[dataloader_idx], pl_module.forbidden
        rate, low, high = forbidden_rate(counts, forbidden)
        description, seeds, steps = self._key(guidance, pl_module)
        measured = {
            "forbidden": rate,
            "forbidden_low": low,
            "forbidden_high": high,
            "kl": kl_divergence(counts, forbidden),
            "kl_uniform": kl_divergence(counts),
            "tv": total_variation(counts, forbidden),
            "evaluations": samples.evaluations,
            "images_per_second": sum(counts) / (time.perf_counter() - self.began),
        }
        row = {
            "method": type(guidance).__name__,
            "scale": asdict(guidance).get("scale", ""),  # type: ignore[call-overload]  # guidances are dataclasses
            "guidance": description,
            "n": sum(counts),
            "seeds": seeds,
            "steps": steps,
            "histogram": " ".join(map(str, counts)),
            **{name: f"{value:.6g}" for name, value in measured.items()},
        }
        if trainer.is_global_zero:
            self._append(row)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show the table."""
        if trainer.is_global_zero and (rows := self._rows()):
            print(results_table(rows))
            print(f"written to {self.path}")

    def _key(self, guidance: Guidance, module: GuidedSampler) -> tuple[str, str, str]:
        settings = {"class": type(guidance).__name__, **asdict(guidance)}  # type: ignore[call-overload]
        return json.dumps(settings), self.seeds, str(module.sampler.steps)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _append(self, row: dict[str, Any]) -> None:
        rows = [*self._rows(), row]
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        part.replace(self.path)
