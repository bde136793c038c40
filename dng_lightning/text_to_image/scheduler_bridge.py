"""Any guidance along the chain of a diffusers scheduler.

A pipeline evaluates its network, combines the outputs, and lets its scheduler take the step. The guidance changes the
output. The x_s of a step is read from the next call, as its x_t. The x_s of the step to the data is not needed: this
kernel has no variance, so the step does not change the posterior.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import output_of
from dng_lightning.sampling.divergence import WithDivergence
from dng_lightning.sampling.noise import Probes
from dng_lightning.sampling.predictors import Predictor
from dng_lightning.sampling.recorders import Recorder, Trajectories
from dng_lightning.sampling.sampler import full_precision, warn_if_biased, with_schedule
from dng_lightning.sampling.second_order import SecondOrder
from dng_lightning.text_to_image.prompts import check_guidance
from dng_lightning.text_to_image.scheduler_kinds import SchedulerKind


@dataclass(frozen=True)
class PendingStep:
    """A step whose x_s is not known yet.

    Attributes:
        step: kernels of the step.
        x_t: latents at its start, (B, C, H, W).
        predictions: predictions for these latents.
        guided: guided prediction.
    """

    step: Step
    x_t: Tensor
    predictions: Predictions
    guided: Guided


class PipelineGuidance:
    """A guidance in a diffusers pipeline; with the same latents and noise its images equal those of ``sample``.

    A chain begins at the first step, and at any step that does not follow the last one or has another batch size. The
    noise levels are then read from the scheduler, with the pipeline's shift and custom sigmas.

    Args:
        pipeline: a pipeline of diffusers with a scheduler of ``scheduler_kinds.KINDS``.
        guidance: guidance method.
        eta: ``eta`` of the pipeline's call, in [0, 1]; None for the scheduler's, which is 1 for a DDIMScheduler. Below
            1 a tracked posterior may be biased: a warning says so, and a scheduler without noise is refused.
        conditions: number K of negative prompts per image.
        recorders: called at each step except the last one.

    Attributes:
        nfe: network evaluations of the last chain, summed over the images.
        prediction: what the network predicts.
        plain: network output that corresponds to the last base prediction, (B, ...) fp32.
        trajectories: scale and posterior along the last chain.

    Raises:
        SettingError: the scheduler is not supported, or a setting is out of its range.
    """

    _second_order: SecondOrder
    _excess: Tensor  # input of a second-order scheduler minus its smooth part
    _term: Tensor | None  # the second-order term of the last step

    def __init__(
        self,
        pipeline: Any,
        guidance: Guidance,
        eta: float | None = None,
        conditions: int = 1,
        recorders: Sequence[Recorder] = (),
    ) -> None:
        check_guidance(guidance)
        self.recorders, self.nfe = list(recorders), 0
        self.pipeline, self.scheduler = pipeline, pipeline.scheduler
        self.kind = SchedulerKind(self.scheduler, eta, tracks=guidance.needs().is_biased(0))
        self.prediction = self.kind.prediction
        self.guidance = with_schedule(guidance, self.kind.schedule)
        self.guidance.start(torch.empty(1, 1, 1, 1), conditions)  # refuses priors that do not fit
        warn_if_biased(guidance.needs(), self.kind.eta)
        self.trajectories = Trajectories()
        self.restart()

    def restart(self) -> None:
        """Begin a new chain at the next step."""
        self._last: PendingStep | None = None

    def level(self, timestep: Tensor | float) -> NoiseLevel:
        """The noise level of a network call at a timestep of the scheduler."""
        return self.kind.chain()[self._index(timestep)].level

    @torch.no_grad()
    def guide(self, predictor: Predictor, x_t: Tensor, timestep: Tensor | float) -> Tensor:
        """The output for the scheduler in place of the network's, (B, ...) fp32.

        Args:
            predictor: gives the predictions of the prompts (the base), of the K negative prompts, and the null.
            x_t: latents (B, ...).
            timestep: timestep of the scheduler, which may be rounded.

        Raises:
            SettingError: the pipeline has another scheduler now, or the scheduler adds less noise than ``eta`` says.
        """
        if self.pipeline.scheduler is not self.scheduler:
            raise SettingError("the pipeline has another scheduler now: set the scheduler before the guidance")
        x_t, index, last = x_t.float(), self._index(timestep), self._last

        # Update: the last step ended at this x_t
        if last is None or last.step.index + 1 != index or last.x_t.shape != x_t.shape:
            self._start(predictor, x_t)
        else:
            self._finish(last, x_t)

        # Predict: D(x_t) and D_k(x_t)
        step, self.source.predictor = self.chain[index], predictor
        predictions = self.source.predict(x_t, step.level, self.guidance.needs(self.state, step))

        # Guide: D_hat
        with full_precision(x_t):
            guided = self.guidance.guide(predictions, self.state, step)
        self.trajectories.note(step, guided)
        self._last = PendingStep(step, x_t, predictions, guided)

        # Step: taken by the scheduler, from a D_hat with which it equals the step of ``sample``
        self.nfe += predictor.nfe
        self.plain = output_of(predictions.denoised, x_t, step.level, self.prediction)
        return output_of(self._for_scheduler(step, x_t, guided), x_t, step.level, self.prediction)

    def _for_scheduler(self, step: Step, x_t: Tensor, guided: Guided) -> Tensor:
        """The denoised prediction with which the scheduler's step equals that of ``sample``, (B, ...)."""
        denoised, kernel = guided.denoised, step.sampling_kernel
        smooth = denoised if guided.smooth is None else guided.smooth
        if guided.renoise is not None:  # the scheduler takes eps from D_hat too: find the D_hat with the same mean
            moved = kernel.mean(x_t, denoised, guided.renoise) - kernel.mean(x_t, denoised)
            denoised = denoised + moved / kernel.x0_coef
        if self.kind.order == 1:
            return denoised
        # The scheduler extrapolates its whole input S + e, but only the smooth part S may be extrapolated. The e with
        # (1 + c) e - c e_before = p gives the push p at first order.
        push, factor = denoised - smooth, 0.0 if self._second_order.before is None else step.extrapolation
        self._excess = push if factor == 0 else (push + factor * self._excess) / (1 + factor)
        self._term = self._second_order(step, guided)
        return smooth + self._excess

    def _index(self, timestep: Tensor | float) -> int:
        """Index of the step of a network call at this timestep."""
        for name in ("step_index", "begin_index"):  # step_index is set from the first step on
            index: int | None = getattr(self.scheduler, name, None)
            if index is not None:
                return index
        nearest = torch.as_tensor(timestep).flatten()[0].cpu() - self.scheduler.timesteps.cpu()
        return int(nearest.abs().argmin())  # pipelines round timesteps to the precision of their networks

    def _start(self, predictor: Predictor, x_T: Tensor) -> None:
        self.chain = self.kind.chain()
        self.state = self.guidance.start(x_T, predictor.conditions)
        self.source = WithDivergence(predictor, Probes(x_T), min(step.eta for step in self.chain))
        self.trajectories, self.nfe = Trajectories(), 0
        self._second_order, self._excess, self._term = SecondOrder(), torch.zeros_like(x_T), None
        for recorder in self.recorders:
            recorder.start(x_T, predictor.conditions)

    def _finish(self, last: PendingStep, x_s: Tensor) -> None:
        """Update the guidance with the end x_s of the last step."""
        step, guided, kernel = last.step, last.guided, last.step.sampling_kernel
        x_s = x_s if self._term is None else x_s - self._term  # see ``sampling.second_order``
        if kernel.std > 0:
            draw = (x_s - kernel.mean(last.x_t, guided.denoised, guided.renoise)) / kernel.std
            is_ddim, is_first = type(self.scheduler).__name__ == "DDIMScheduler", len(self.trajectories.levels) == 1
            if is_ddim and is_first and draw.square().mean() < 0.25:  # others need no eta in the pipeline's call
                eta = f"{step.eta:g}"
                raise SettingError(
                    f"the scheduler added less noise than eta {eta} says: call the pipeline with eta={eta}"
                )
            self.source.record_noise(last.predictions, kernel.std, draw)
        with full_precision(x_s):
            self.state = self.guidance.update(self.state, step, last.x_t, x_s, last.predictions, guided)
            for recorder in self.recorders:
                recorder.record(step, last.x_t, x_s, last.predictions, guided)
