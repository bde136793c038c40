"""Evaluates the images of ``dng test`` as they come: says when, and leaves the measuring to an ``Evaluator``."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dng_lightning import diffusers_format
from dng_lightning.callbacks import trackers
from dng_lightning.callbacks.progress import SamplingProgress
from dng_lightning.callbacks.requirements import claim_draws, sampler_of, seeds_of
from dng_lightning.data.seeds import Seeds
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.comparison import LEAST
from dng_lightning.evaluation.evaluator import Evaluator
from dng_lightning.evaluation.features import ClassifierFeatures, FeatureExtractor, InceptionFeatures
from dng_lightning.evaluation.real import RealStatistics
from dng_lightning.evaluation.runs import Cost, Labels, Samples
from dng_lightning.modules.image_sampler import Draw, ImageSampler
from dng_lightning.sampling import PassiveTracking

DRAWING = 0.05  # share of the time that goes into redrawing the figures, at most


class ResultsWriter(Callback):
    """Writes below the trainer's ``default_root_dir``, as soon as a guidance is done; the figures not quite as often.

    ``results.csv`` (a row a guidance), ``results.md``, ``classes.csv`` (quality class by class), ``posterior.csv``
    (how well the tracked posteriors predict what unguided images become), and the figures ``tradeoff.png``,
    ``histograms.png``, ``samples.png`` and ``calibration.png``. For ``tensorboard --logdir`` a run a row is in
    ``board``, the images themselves are in ``drawn``. A guidance that has its row, for the same seeds, steps
    and features, is not evaluated again.

    Besides the guidances there are the unguided images and, made of them, those that a filter would let pass; a measure
    for which it lets too few pass is left empty.

    Args:
        features: what images are compared in: the ``classifier``'s penultimate layer, or ``inception`` (then the
            Fréchet distance is FID); None to leave out what needs real images.
        inception_weights: a file with Inception's weights; None to download them.
        unguided: draw the unguided images too. Without them an evaluation of few rows takes half the time, and says
            nothing of rejection, of how far images were moved and of how well posteriors predict.

    Raises:
        SettingError: there are no such features.
    """

    def __init__(
        self, features: str | None = "classifier", inception_weights: str | None = None, unguided: bool = True
    ) -> None:
        if features not in ("classifier", "inception", None):
            raise SettingError(f"features must be classifier, inception or null; got {features}")
        self.features, self.inception_weights, self.unguided = features, inception_weights, unguided
        self.evaluator: Evaluator | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the real images' statistics, and leave out the draws that are done.

        Raises:
            SettingError: nobody can label the images, no class is left to draw, there are too few images to compare,
                or no statistics of real images that fit.
        """
        module, data = sampler_of(pl_module, self), seeds_of(trainer, self)
        if module.judge is None:
            raise SettingError(
                "dng test needs a classifier to label the images: set model.classifier, or for prompts model.reader "
                "and model.negative_prompt"
            )
        module.to(trainer.strategy.root_device)  # the trainer would, but only once the real images are looked at
        extractor = self._extractor(module)
        reference = self._reference(trainer, module, data, extractor) if extractor else None
        names = (module.class_names[label] for label in module.forbidden)
        about = {"model": diffusers_format.name_of(module.checkpoint), "forbidden": ", ".join(names)}
        evaluator = self.evaluator = Evaluator(
            Path(trainer.default_root_dir),
            data.seeds,
            module.sampler.steps,
            module.kinds,
            lambda images: _labels(module, images),
            extractor,
            reference,
            module.all_draws()[0].run if self.unguided else None,
            about,
        )
        self.posteriors = trackers.tracked_posteriors(module.guidances, module.unguided) if self.unguided else []
        claim_draws(module, self)
        module.draws = self._todo(module, evaluator)
        data.passes = len(module.draws)
        trainer.strategy.barrier("finished guidances")  # nobody writes before everybody has looked
        self.sampled = self.drawing = 0.0  # seconds since the figures were drawn, and what that took

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the progress, all guidances together."""
        module, images = sampler_of(pl_module, self), 0
        for loader in trainer.test_dataloaders or []:
            images += len(loader.sampler)
        self.progress = SamplingProgress(trainer, images, module.sampler.steps)
        module.recorders = [self.progress]

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock; before a guidance's first batch, clear what an interrupted run left of it."""
        module, evaluator = sampler_of(pl_module, self), self._evaluator()
        draw = module.draws[dataloader_idx]
        if batch_idx == 0:
            self.clock = _Clock(module.device)
            if trainer.is_global_zero:
                evaluator.store(draw.run).clear()
            trainer.strategy.barrier("cleared")
            tracks = self.posteriors and draw.run == evaluator.unguided
            self.tracking = PassiveTracking(self.posteriors) if tracks else None
            module.recorders = [self.progress, *([self.tracking] if self.tracking else [])]
        self.clock.start()

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
        module, evaluator, samples = sampler_of(pl_module, self), self._evaluator(), outputs["samples"]
        self.clock.stop(samples)
        draw = module.draws[dataloader_idx]
        evaluator.add(draw.run, samples, self.tracking.log_prob if self.tracking else None)
        self.sampled += self.clock.seconds
        if batch_idx + 1 < trainer.num_test_batches[dataloader_idx]:
            return
        if self.tracking:  # what the posteriors need is not the images' own cost: draw a batch without them
            module.recorders = []
            self.clock = _Clock(module.device)
            self.clock.start()
            self.clock.stop(module.draw(samples.seeds, draw.guidance))
        cost = self.clock.cost(trainer)
        trainer.strategy.barrier("drawn")
        if trainer.is_global_zero:
            self._finish(draw, module, cost, samples)
        trainer.strategy.barrier("row")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the progress off the screen."""
        self.progress.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show the tables."""
        if trainer.is_global_zero and self.evaluator is not None and (summary := self.evaluator.summary()):
            print(summary)

    def _finish(self, draw: Draw, module: ImageSampler, cost: Cost, samples: Samples) -> None:
        evaluator = self._evaluator()
        names = {trackers.tracker(posterior): trackers.label(posterior) for posterior in self.posteriors}
        evaluator.finish(draw.run, cost, [module.schedule.fraction(level) for level in samples.levels], names)
        if draw is module.draws[-1] or self.drawing <= DRAWING * self.sampled:
            began = time.perf_counter()
            evaluator.write_figures([draw.run for draw in module.all_draws()])
            self.sampled, self.drawing = 0.0, time.perf_counter() - began

    def _todo(self, module: ImageSampler, evaluator: Evaluator) -> list[Draw]:
        """The draws that have no row; that of the unguided images also where these are needed again."""
        unguided, *others = module.all_draws()
        others = [draw for draw in others if not evaluator.is_done(draw.run)]
        if not self.unguided:
            return others
        judged = all(evaluator.is_tracked(trackers.tracker(posterior)) for posterior in self.posteriors)
        is_known = evaluator.is_done(unguided.run) and judged
        if is_known and (not others or evaluator.store(unguided.run).is_complete):
            return others
        return [unguided, *others]

    def _extractor(self, module: ImageSampler) -> FeatureExtractor | None:
        """The network whose features are compared, on the module's device."""
        if self.features == "inception":
            return InceptionFeatures(self.inception_weights).to(module.device)
        return ClassifierFeatures(module.judge, module.judge_name) if self.features and module.judge else None

    def _reference(
        self, trainer: Trainer, module: ImageSampler, data: Seeds, extractor: FeatureExtractor
    ) -> RealStatistics:
        """The statistics of real images: made of ``data.real``, or found in the run's or the checkpoint's folder."""
        folder = Path(trainer.default_root_dir)
        if data.real is not None:
            module.kinds.check_real(data.real)
            if (data.real.class_names, data.real.image_shape) != (module.kinds.names, tuple(module.image_shape)):
                raise SettingError(
                    f"data.real: {type(data.real).__name__} has other images than the model: name another"
                )
            if trainer.is_global_zero:
                data.real.prepare_data()
                data.real.setup("test")
                path = folder / RealStatistics.file(extractor)
                assert module.judge is not None  # as setup checked
                RealStatistics.cached(path, data.real, extractor, module.judge).save(path)
            trainer.strategy.barrier("real images")
        real = RealStatistics.find([folder, module.folder], extractor)
        real.check(module.kinds.names, module.image_shape, extractor)
        if len(real.features(module.kinds.retained)) < LEAST:
            raise SettingError(
                f"the statistics hold less than {LEAST} real images of {real.data} that are not forbidden"
            )
        return real

    def _evaluator(self) -> Evaluator:
        assert self.evaluator is not None  # made in setup
        return self.evaluator


class _Clock:
    """Time, evaluations and CUDA memory of a process's images; the first batch is not timed where others follow.

    That one may compile, or warm caches.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.batches = device, 0
        self.first = self.rest = (0.0, 0)  # seconds, images
        self.seconds = self.nfe = self.images = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self, samples: Samples) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self.began
        count = len(samples.seeds)
        self.nfe, self.images = self.nfe + count * samples.nfe, self.images + count
        if self.batches:
            self.rest = (self.rest[0] + self.seconds, self.rest[1] + count)
        else:
            self.first = (self.seconds, count)
        self.batches += 1

    def cost(self, trainer: Trainer) -> Cost:
        """Of all processes: the mean over all images, and their speeds together."""
        seconds, images = self.rest if self.rest[1] else self.first
        sums = torch.tensor([self.nfe, self.images, images / seconds], dtype=torch.float32, device=self.device)
        nfe, count, speed = (float(x) for x in trainer.strategy.reduce(sums, reduce_op="sum"))
        cuda = self.device.type == "cuda"
        return Cost(nfe / count, speed, torch.cuda.max_memory_allocated(self.device) / 2**20 if cuda else None)


def _labels(module: ImageSampler, images: torch.Tensor) -> Labels:
    labels = module.label(images.to(module.device))
    assert labels is not None  # setup refuses a module without a judge
    return labels
