"""Evaluates the images of ``dng test`` batch by batch with an ``Evaluator``."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer

from dng_lightning.callbacks.drawing import DrawingCallback
from dng_lightning.callbacks.passive_posteriors import label, tracked_posteriors, tracker
from dng_lightning.callbacks.requirements import is_dry_run
from dng_lightning.data.seeds import Seeds
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.boards import board_of
from dng_lightning.evaluation.evaluator import Evaluator
from dng_lightning.evaluation.features import ClassifierFeatures, FeatureExtractor
from dng_lightning.evaluation.measures import LEAST
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.evaluation.runs import Cost, Samples
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.modules.image_sampler import ImageSampler
from dng_lightning.modules.judges import load_features
from dng_lightning.sampling import PassiveTracking
from dng_lightning.sampling.sampler import with_schedule
from dng_lightning.storage import resources

DRAWING = 0.05  # greatest share of the time for redrawing the figures


class ResultsWriter(DrawingCallback):
    """Writes the results below the trainer's ``default_root_dir`` after each guidance.

    - ``results.csv``: a row per guidance; ``results.md``: the same as tables.
    - ``classes.csv``: quality of each class.
    - ``posterior.csv``: Brier score and AUC of the passively tracked posteriors on the unguided images.
    - ``tradeoff.png``, ``histograms.png``, ``samples.png``, ``calibration.png``.
    - ``tensorboard``: a TensorBoard run for each row; ``sample_cache``: the images.

    The trainer's loggers get the measures, the table and the figures, too.

    A guidance that has a row for the same seeds, steps and features is not evaluated again. The rows Unguided and
    Rejection are computed from the unguided images; measures for which too few images are accepted are left empty. The
    speed excludes the first batch of each process, which may include compilation.

    Args:
        features: features for the distances: the penultimate layer of the model's ``classifier``; ``inception`` (the
            Fréchet distance is then FID); ``dinov2-vit-b-14``, ``clip-vit-b-32`` or others of torch-fidelity; or those
            of another classifier, see ``modules.judges.load_features``; None to leave out the measures that need real
            images.
        feature_weights: file with the weights of Inception or CLIP; None to download them.
        unguided: draw the unguided images too. Without them there is no Rejection row, no RMSE to unguided and no
            ``posterior.csv``, and an evaluation of few rows takes half the time.

    """

    evaluator: Evaluator

    def __init__(
        self,
        features: PretrainedClassifier | str | None = "classifier",
        feature_weights: str | None = None,
        unguided: bool = True,
    ) -> None:
        self.features, self.feature_weights, self.unguided = features, feature_weights, unguided

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the reference statistics, and leave out the draws that are done.

        Raises:
            SettingError: there is no classifier to label the images, all classes are forbidden, there are too few
                images for the measures, or there are no matching reference statistics.
        """
        super().setup(trainer, pl_module, stage)
        module, data = self.module, self.data
        if module.judge is None:
            raise SettingError(
                "dng test needs a classifier to label the images: set model.classifier, or for prompts model.reader "
                "and model.negative_prompt"
            )
        if is_dry_run(trainer, self):
            return
        self.check_shared(trainer)
        module.to(trainer.strategy.root_device)  # the trainer does so only after the setup
        extractor = self._extractor(module)
        draws = module.all_draws()[0 if self.unguided else 1 :]
        tracks = self.unguided and module.tracks_passively
        self.posteriors = tracked_posteriors(module.guidances, module.unguided) if tracks else []
        names = ", ".join(module.class_names[number] for number in module.forbidden)
        self.evaluator = Evaluator(
            folder=Path(trainer.default_root_dir),
            seeds=data.seeds,
            steps=module.sampler.steps,
            label_space=module.label_space,
            label=module.judge.label,
            extractor=extractor,
            unguided=draws[0].run if self.unguided else None,
            trackers={tracker(posterior): label(posterior) for posterior in self.posteriors},
            about={"model": resources.name_of(module.checkpoint), "forbidden": names},
            board=board_of(trainer),
        )
        if extractor:  # last, because missing statistics are computed and written
            self.evaluator.reference = self._reference(trainer, module, data, extractor)
        todo = self.evaluator.unfinished([draw.run for draw in draws])
        module.draws = [draw for draw in draws if draw.run in todo]
        data.passes = len(module.draws)
        trainer.strategy.barrier("finished guidances")  # no process writes before all have searched
        self.runs, self.drawn_at, self.drawing = [draw.run for draw in draws], time.perf_counter(), 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the progress, all guidances together."""
        self.show_progress(trainer, sum(len(loader.sampler) for loader in trainer.test_dataloaders or []))

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock; before a guidance's first batch, clear its images of an interrupted run."""
        module = self.module
        if batch_idx == 0:
            run = module.draws[dataloader_idx].run
            if trainer.is_global_zero:
                self.evaluator.store(run).clear()
            trainer.strategy.barrier("cleared")
            tracks = bool(self.posteriors) and run == self.evaluator.unguided
            posteriors = [with_schedule(posterior, module.schedule) for posterior in self.posteriors]
            self.tracking = PassiveTracking(posteriors, getattr(module.unguided, "scale", 1.0)) if tracks else None
            module.recorders = [self.progress, *([self.tracking] if self.tracking else [])]
            self.clock = _Clock(module.device)
        self.clock.start()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Store the images; after a guidance's last batch, write its row and redraw the figures."""
        module, samples = self.module, outputs["samples"]
        self.clock.stop(samples)
        draw = module.draws[dataloader_idx]
        self.evaluator.add(draw.run, samples, self.tracking.log_prob if self.tracking else None)
        if batch_idx + 1 < trainer.num_test_batches[dataloader_idx]:
            return
        if self.tracking:  # the cost excludes passive tracking: draw a batch without it
            module.recorders, self.clock = [], _Clock(module.device)
            self.clock.start()
            self.clock.stop(module.draw(samples.seeds, draw.guidance))
        cost = self.clock.cost(trainer)
        trainer.strategy.barrier("samples")
        if trainer.is_global_zero:
            self.evaluator.finish(draw.run, cost)
            began = time.perf_counter()
            if self.drawing <= DRAWING * (began - self.drawn_at):
                self.evaluator.write_figures(self.runs)
                self.drawn_at = time.perf_counter()
                self.drawing = self.drawn_at - began
        trainer.strategy.barrier("row")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the figures unless they show all rows, and print the tables."""
        if not trainer.is_global_zero or not hasattr(self, "evaluator"):
            return
        if not self.evaluator.is_drawn:
            self.evaluator.write_figures(self.runs)
        if summary := self.evaluator.summary():
            print(summary)

    def _extractor(self, module: ImageSampler) -> FeatureExtractor | None:
        """The feature extractor, on the module's device."""
        if self.features is None or module.judge is None:
            return None
        if self.features == "classifier":
            return ClassifierFeatures(module.judge).to(module.device)
        return load_features(self.features, self.feature_weights).to(module.device)

    def _reference(
        self, trainer: Trainer, module: ImageSampler, data: Seeds, extractor: FeatureExtractor
    ) -> ReferenceStatistics:
        """Statistics of ``data.reference_data``, or from the folder of the run, the classifier or the checkpoint."""
        folder, label_space = Path(trainer.default_root_dir), module.label_space
        if data.reference_data is not None and module.judge is not None:
            real = data.reference_data
            label_space.check_real(real)
            if (real.class_names, real.image_shape) != (label_space.names, tuple(module.image_shape)):
                name = type(real).__name__
                raise SettingError(f"data.reference_data: {name} has other images than the model: name another")
            if trainer.is_global_zero:
                real.prepare_data()
                real.setup("test")
                path = folder / ReferenceStatistics.file(extractor)
                ReferenceStatistics.cached(path, real, extractor, module.judge).save(path)
            trainer.strategy.barrier("real images")
        own = [module.judge.folder] if isinstance(module.judge, ClassifierModule) else []
        reference = ReferenceStatistics.find([folder, *own, module.folder], extractor)
        reference.check(label_space.names, module.image_shape, extractor)
        if len(reference.features(label_space.retained)) < LEAST:
            raise SettingError(
                f"the statistics hold less than {LEAST} real images of {reference.data} that are not forbidden"
            )
        return reference


class _Clock:
    """Network evaluations, time and CUDA memory of the images of one guidance in a process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batches: list[tuple[int, float, float]] = []  # images, network evaluations, seconds
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self, samples: Samples) -> None:
        """Add the cost of a batch, after synchronising with the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        count = len(samples.seeds)
        self.batches.append((count, count * samples.nfe, time.perf_counter() - self.began))

    def cost(self, trainer: Trainer) -> Cost:
        """Cost over all processes: mean NFE of all images, and the sum of the speeds without the first batches."""
        count, nfe, _ = map(sum, zip(*self.batches, strict=True))
        timed, _, seconds = map(sum, zip(*(self.batches[1:] or self.batches), strict=True))
        sums = torch.tensor([count, nfe, timed / seconds], dtype=torch.float32, device=self.device)
        images, evaluations, speed = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        cuda = self.device.type == "cuda"
        return Cost(evaluations / images, speed, torch.cuda.max_memory_allocated(self.device) / 2**20 if cuda else None)
