"""Any guidance along the chain of a diffusers scheduler.

A pipeline evaluates its network, blends the outputs into one, and has its scheduler take the step. The guidance changes
that output. Where the step went is inferred from the next call, whose x_t is what the scheduler, or a callback after
it, made of the last one. The step to the data is never inferred: its kernel has no variance, so it has no evidence.
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
from dng_lightning.text_to_image.scheduler_kinds import kind_of


@dataclass(frozen=True)
class PendingStep:
    """A step that the guidance is still to be updated with.

    Attributes:
        step: its kernels.
        x_t: the latents it started from, (B, C, H, W).
        predictions: of these latents.
        guided: the guided prediction.
    """

    step: Step
    x_t: Tensor
    predictions: Predictions
    guided: Guided


class PipelineGuidance:
    """A guidance in a diffusers pipeline; for the same latents and noise it draws the images of ``sample``.

    A chain begins with the first step, and wherever a step does not follow the last one or has another batch. The noise
    levels are read off the scheduler there: what the pipeline has set, shift and custom sigmas included.

    Args:
        pipeline: of diffusers, with a scheduler of ``scheduler_kinds.KINDS``.
        guidance: the method.
        eta: what the pipeline is called with, in [0, 1]; None for the scheduler's own, 1 for a DDIMScheduler. Below 1
            what the guidance tracks may be biased: a warning says so, and a scheduler that draws no noise at all is
            refused.
        conditions: number K of negative prompts an image.
        recorders: called at each step but the last.

    Attributes:
        nfe: network evaluations of the last chain, summed over the images.
        prediction: what the network predicts.
        plain: output that stands for the base prediction of the last step, (B, ...) fp32.
        trajectories: scale and posterior along the last chain.

    Raises:
        SettingError: the scheduler does not draw from a Gaussian kernel that is known, or a setting is out of its
            range.
    """

    _second_order: SecondOrder
    _excess: Tensor  # of what a second-order scheduler was given over the smooth part
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
        self.kind = kind_of(self.scheduler, eta, tracks=guidance.needs().is_biased(0))
        self.prediction = self.kind.levels.prediction
        self.guidance = with_schedule(guidance, self.kind.levels.schedule)
        self.guidance.start(torch.empty(1, 1, 1, 1), conditions)  # refuses priors that do not fit
        warn_if_biased(guidance.needs(), self.kind.eta)
        self.trajectories = Trajectories()
        self.restart()

    def restart(self) -> None:
        """The next step begins a chain."""
        self._last: PendingStep | None = None

    def level(self, timestep: Tensor | float) -> NoiseLevel:
        """The noise level of a network call at a timestep of the scheduler."""
        return self.kind.chain()[self._index(timestep)].level

    @torch.no_grad()
    def guide(self, predictor: Predictor, x_t: Tensor, timestep: Tensor | float) -> Tensor:
        """The output for the scheduler in place of the network's, (B, ...) fp32.

        Args:
            predictor: gives the predictions of the prompts (the base), of the K negative prompts, and the null.
            x_t: the latents (B, ...).
            timestep: of the scheduler, rounded or not; a chain may start at any.

        Raises:
            SettingError: the scheduler is another one now, or draws less noise than ``eta`` says.
        """
        if self.pipeline.scheduler is not self.scheduler:
            raise SettingError("the pipeline got another scheduler: give it first that, and then the guidance")
        x_t, index, last = x_t.float(), self._index(timestep), self._last

        # Update: with where the last step went
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

        # Step: left to the scheduler, which is given the D_hat that leads where ``sample`` goes
        self.nfe += predictor.nfe
        self.plain = output_of(predictions.denoised, x_t, step.level, self.prediction)
        return output_of(self._for_scheduler(step, x_t, guided), x_t, step.level, self.prediction)

    def _for_scheduler(self, step: Step, x_t: Tensor, guided: Guided) -> Tensor:
        """The denoised prediction from which the scheduler's step is that of ``sample``, (B, ...)."""
        denoised, drawn = guided.denoised, step.sampling_kernel
        smooth = denoised if guided.smooth is None else guided.smooth
        if guided.renoise is not None:  # the scheduler takes eps from D_hat itself: the D_hat of the same mean
            moved = drawn.mean(x_t, denoised, guided.renoise) - drawn.mean(x_t, denoised)
            denoised = denoised + moved / drawn.x0_coef
        if self.kind.order == 1:
            return denoised
        # It extrapolates all that it is given, S + e, and of these the smooth part S alone shall be: e takes the push p
        # and makes up for the e before, (1 + c) e - c e_before = p
        push, factor = denoised - smooth, 0.0 if self._second_order.before is None else step.extrapolation
        self._excess = push if factor == 0 else (push + factor * self._excess) / (1 + factor)
        self._term = self._second_order(step, guided)
        return smooth + self._excess

    def _index(self, timestep: Tensor | float) -> int:
        """The number of the step that a network call at this timestep is for."""
        for name in ("step_index", "begin_index"):  # schedulers that count their steps; the former once one is taken
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
        """Update the guidance with where the last step went."""
        step, guided, drawn = last.step, last.guided, last.step.sampling_kernel
        x_s = x_s if self._term is None else x_s - self._term  # no evidence: see ``sampling.second_order``
        if drawn.std > 0:
            draw = (x_s - drawn.mean(last.x_t, guided.denoised, guided.renoise)) / drawn.std
            if len(self.trajectories.levels) == 1 and draw.square().mean() < 0.25:
                eta = f"{step.eta:g}"
                raise SettingError(
                    f"the scheduler drew less noise than eta {eta} says: call the pipeline with eta={eta}"
                )
            self.source.record_noise(last.predictions, drawn.std, draw)
        with full_precision(x_s):
            self.state = self.guidance.update(self.state, step, last.x_t, x_s, last.predictions, guided)
            for recorder in self.recorders:
                recorder.record(step, last.x_t, x_s, last.predictions, guided)
