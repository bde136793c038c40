"""Fits the posterior of a trained model to the labels of its unguided images."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional

from dng_lightning.callbacks.drawing import DrawingCallback
from dng_lightning.callbacks.requirements import is_dry_run
from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.evaluation import figures, study_figures
from dng_lightning.evaluation.class_balance import posterior_quality
from dng_lightning.evaluation.posterior_metrics import class_entropy, decisive_steps
from dng_lightning.evaluation.sample_store import SampleStore
from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.kernel import NoiseLevel
from dng_lightning.modules.compatibility import check_classes, check_negatives
from dng_lightning.modules.guided_sampler import GuidedSampler
from dng_lightning.posterior import CalibratedPosterior, ProbePosterior
from dng_lightning.posterior.base import at_most
from dng_lightning.posterior.calibration import fit_calibration, log_odds
from dng_lightning.sampling import PassiveTracking
from dng_lightning.storage import resources
from dng_lightning.storage.files import write_whole

KNOTS = 10  # intervals between the levels of the calibration
UNCALIBRATED = CalibratedPosterior([[0.0, 1.0, 0.0]])  # sums log ratios; its posterior is not used
PROBE = ProbePosterior(p_max=1 - 1e-9)  # its own probabilities


class CalibrationWriter(DrawingCallback):
    """Writes ``calibration.yaml``, an overlay for ``dng predict``, to ``default_root_dir`` and the checkpoint's folder.

    Draws unguided images at the data's seeds, sums the log ratios of each of the sampler's forbidden classes, and fits
    slope and shift at every tenth of the levels by maximum likelihood, for all classes together, on one half of the
    images. ``calibration.json`` and ``calibration.png`` evaluate the posterior before and after calibration on the
    other half. ``entropy.png`` shows where along the chain the class is decided: a choice for ``LimitedInterval``. If
    the sampler has a probe, its log odds are calibrated instead, at a single evaluation a step, and the folder is that
    of the probe's checkpoint.

    Args:
        guidance_shift_weight: setting in the overlay, see ``CalibratedPosterior``.
        scale: guidance scale in the overlay.
    """

    def __init__(self, guidance_shift_weight: float = 0.0, scale: float = 1.0) -> None:
        self.guidance_shift_weight, self.scale = guidance_shift_weight, scale

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the sampler draw the images once, without guidance.

        Raises:
            SettingError: there is no classifier to label the images.
        """
        super().setup(trainer, pl_module, stage)
        module = self.module
        if module.judge is None or not isinstance(module, GuidedSampler):
            raise SettingError("a calibration needs a GuidedSampler and its classifier: set model.classifier")
        self.probe = module.probe
        self.uncalibrated = PROBE if self.probe else UNCALIBRATED
        tracked = [DynamicNegativeGuidance(posterior=self.uncalibrated)]
        negatives: list[Any] = list(module.negatives)
        check_negatives(negatives, module.model, module.checkpoint, module.forbidden, tracked)
        check_classes(module.forbidden, [], tracked)
        if is_dry_run(trainer, self):
            return
        self.check_shared(trainer)
        module.draws, self.data.passes = module.all_draws()[:1], 1
        self.folder, own = Path(trainer.default_root_dir), (module.probe or module.tracked[0]).folder
        # also the folder from which `calibration: checkpoint` is read, unless the model is shipped
        self.folders = [self.folder] if resources.ships(own) else [self.folder, own]
        self.store, self.label = SampleStore(self.folder / "sample_cache", self.data.seeds), module.judge.label
        self.tracking = PassiveTracking([self.uncalibrated])

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the images of an interrupted run, and show the progress."""
        if trainer.is_global_zero:
            self.store.clear()
        trainer.strategy.barrier("cleared")
        self.show_progress(trainer, -(-len(self.store.seeds) // trainer.world_size), self.tracking)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Store labels and evidence."""
        samples = outputs["samples"]
        pixels = to_uint8(samples.images)
        labels = self.label(to_float(pixels)).labels  # of the stored pixels
        evidence = log_odds(self.tracking.log_prob[:, :, 0]) if self.probe else self.tracking.state(0)
        self.store.write(samples.seeds, pixels=pixels, labels=labels, evidence=evidence)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit, evaluate and write the calibration."""
        super().on_test_end(trainer, pl_module)
        trainer.strategy.barrier("sampled")
        if not trainer.is_global_zero:
            return
        self.store.merge()
        levels, schedule = self.tracking.levels, self.module.schedule
        evidence = self.store.all("evidence").double()
        became = self.store.all("labels").unsqueeze(1) == torch.tensor(self.module.forbidden)
        fitted, unseen = evidence.tensor_split(2)
        became_fitted, became_unseen = became.tensor_split(2)

        # Fit: log SNR of every tenth of the levels, from the noisiest that has one to the first above the data
        chosen = [schedule.level(max(1, round(schedule.T * i / KNOTS))) for i in range(KNOTS, -1, -1)]
        knots = [level.log_snr for level in chosen if math.isfinite(level.log_snr)]
        posterior = CalibratedPosterior(fit_calibration(fitted, levels, became_fitted, knots))

        # Evaluate, on the other half
        tracked = became_fitted.double().mean().log() + unseen
        before = functional.logsigmoid(unseen) if self.probe else tracked
        posteriors = {
            "uncalibrated": [at_most(log_p, posterior.p_max).exp() for log_p in before.unbind(1)],
            "calibrated": [posterior.read(unseen[:, i], level).exp() for i, level in enumerate(levels)],
        }
        times = [schedule.fraction(level) for level in levels]
        said = [*self._judge(posteriors, became_unseen, times), self._interval(posteriors["calibrated"], levels, times)]

        # Write the overlay
        settings: dict[str, Any] = {"calibration": posterior.calibration}
        if not self.probe:
            settings["guidance_shift_weight"] = self.guidance_shift_weight
        name = "ProbePosterior" if self.probe else "CalibratedPosterior"
        guidance = {"scale": self.scale, "posterior": {"class_path": name, "init_args": settings}}
        overlay: dict[str, Any] = {"guidance": {"class_path": "DynamicNegativeGuidance", "init_args": guidance}}
        if self.probe:
            overlay["probe"] = self.probe.name
        text = yaml.safe_dump(
            {"model": {"class_path": "GuidedSampler", "init_args": overlay}},
            sort_keys=False,
            default_flow_style=None,
            width=120,
        )
        paths = [folder / "calibration.yaml" for folder in self.folders]
        for path in paths:
            write_whole(path, text.encode())
        print("\n".join([*said, *(f"written to {path}" for path in paths)]))  # last, as the output may be closed

    def _interval(self, posterior: list[Tensor], levels: list[NoiseLevel], times: list[float]) -> str:
        """Draw the class entropy, and say between which noise levels the class is decided."""
        entropy = class_entropy(torch.stack(posterior, 1))
        decisive = decisive_steps(entropy)
        figures.save(study_figures.class_entropy(times, entropy, decisive), self.folder / "entropy.png", 120)
        high, low = (math.exp(-levels[step].log_snr / 2) for step in decisive)
        return f"the class is decided at noise levels sigma / alpha of {high:.3g} to {low:.3g} (LimitedInterval)"

    def _judge(self, posteriors: dict[str, list[Tensor]], became: Tensor, times: list[float]) -> list[str]:
        """Evaluate posteriors at every tenth of the steps, for all classes together; returns a line for each."""
        places = sorted({round(i * (len(times) - 1) / 10) for i in range(11)})
        judged: dict[str, Any] = {"n": len(became)}
        ends, said = {}, []
        for name, posterior in posteriors.items():
            found = {place: posterior_quality(posterior[place].flatten(), became.flatten()) for place in places}
            judged[name] = {f"{times[i]:.3g}": {"auc": q.auc, "brier": round(q.brier, 5)} for i, q in found.items()}
            ends[name] = found[places[-1]]
            said.append(f"mean Brier score {name}: {sum(q.brier for q in found.values()) / len(found):.4f}")
        write_whole(self.folder / "calibration.json", (json.dumps(judged, indent=1) + "\n").encode())
        figures.save(study_figures.calibration(ends), self.folder / "calibration.png", 120)
        return said
