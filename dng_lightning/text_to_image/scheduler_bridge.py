"""Any guidance along the chain of a diffusers scheduler.

A pipeline evaluates its network, blends the outputs into one, and has its scheduler take the step. The guidance changes
that output. Where the step went is inferred from the next call, whose x_t is what the scheduler, or a callback after
it, made of the last one. The step to the data is never inferred: its kernel has no variance, so it has no evidence.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dng_lightning import diffusers_format
from dng_lightning.errors import SettingError, check_0_to_1
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.kernel import Kernel, Variance
from dng_lightning.parametrization import output_of
from dng_lightning.sampling.divergence import WithDivergence
from dng_lightning.sampling.noise import Probes
from dng_lightning.sampling.predictors import Predictor
from dng_lightning.sampling.recorders import Trajectories
from dng_lightning.sampling.sampler import full_precision, warn_if_biased, with_schedule
from dng_lightning.text_to_image.prompts import check_guidance

# variance types of DDPMScheduler; DDIMScheduler has the first
VARIANCES: dict[str, Variance] = {"fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta"}


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

    A chain begins with the first step, and wherever a step does not follow the last one or has another batch.

    Args:
        pipeline: of diffusers, its ``scheduler`` a DDPMScheduler or a DDIMScheduler.
        guidance: the method.
        eta: what the pipeline is called with, in [0, 1]; DDPMScheduler's is always 1. Below 1 what the guidance tracks
            may be biased, and a warning says so.

    Attributes:
        trajectories: scale and posterior along the last chain.

    Raises:
        SettingError: the scheduler does not draw from a Gaussian kernel that is known, or a setting is out of its
            range.
    """

    def __init__(self, pipeline: Any, guidance: Guidance, eta: float = 1.0) -> None:
        check_guidance(guidance)
        if guidance.needs().attention is not None:
            name = display_name(guidance)
            raise SettingError(f"{name} acts inside the attention, which is the pipeline's: name another")
        check_0_to_1(eta=eta)
        self.pipeline, self.scheduler, self.eta = pipeline, pipeline.scheduler, eta
        self.variance = self._variance()
        self.schedule = diffusers_format.schedule_of(self.scheduler)
        self.prediction = diffusers_format.prediction_of(self.scheduler)
        self.schedule.check(self.prediction)
        self.guidance = with_schedule(guidance, self.schedule)
        self.guidance.start(torch.empty(1, 1, 1, 1), 1)  # refuses priors that do not fit
        warn_if_biased(guidance.needs(), eta)
        self.trajectories = Trajectories()
        self.restart()

    def restart(self) -> None:
        """The next step begins a chain."""
        self._last: PendingStep | None = None

    @torch.no_grad()
    def guide(self, predictor: Predictor, x_t: Tensor, timestep: Tensor | int) -> Tensor:
        """The output for the scheduler in place of the network's, (B, C, H, W) fp32.

        Args:
            predictor: gives the predictions of the prompts (the base), of the negative prompts (K = 1), and the null.
            x_t: the latents (B, C, H, W).
            timestep: of the scheduler; a chain may start at any.

        Raises:
            SettingError: the scheduler is another one now, or draws less noise than ``eta`` says.
        """
        if self.pipeline.scheduler is not self.scheduler:
            raise SettingError("the pipeline got another scheduler: give it first that, and then the guidance")
        x_t, timestep, last = x_t.float(), int(timestep), self._last

        # Update: with where the last step went
        if last is None or last.step.next_level.timestep != timestep or last.x_t.shape != x_t.shape:
            self._start(predictor, x_t)
        else:
            self._finish(last, x_t)

        # Predict: D(x_t) and D_k(x_t)
        step, self.source.predictor = self._step(timestep), predictor
        predictions = self.source.predict(x_t, step.level, self.guidance.needs(self.state, step))

        # Guide: D_hat
        with full_precision(x_t):
            guided = self.guidance.guide(predictions, self.state, step)
        self.trajectories.note(step, guided)
        self._last = PendingStep(step, x_t, predictions, guided)

        # Step: left to the scheduler, which takes eps from D_hat: where eps is another one, the D_hat of the same mean
        denoised, drawn = guided.denoised, step.sampling_kernel
        if guided.renoise is not None:
            moved = drawn.mean(x_t, denoised, guided.renoise) - drawn.mean(x_t, denoised)
            denoised = denoised + moved / drawn.x0_coef
        return output_of(denoised, x_t, step.level, self.prediction)

    def _start(self, predictor: Predictor, x_T: Tensor) -> None:
        self.grid = [int(timestep) for timestep in self.scheduler.timesteps] + [-1]
        self.state = self.guidance.start(x_T, 1)
        self.source = WithDivergence(predictor, Probes(x_T), self.eta)
        self.trajectories = Trajectories()

    def _step(self, timestep: int) -> Step:
        index = self.grid.index(timestep)
        t, s = (self.schedule.level(place + 1) for place in self.grid[index : index + 2])
        kernel = Kernel(t, s, kind=self.variance)
        drawn = kernel if self.eta == 1 else Kernel(t, s, self.eta)
        return Step(index, len(self.grid) - 1, kernel, drawn)

    def _finish(self, last: PendingStep, x_s: Tensor) -> None:
        """Update the guidance with where the last step went."""
        step, guided, drawn = last.step, last.guided, last.step.sampling_kernel
        if drawn.std > 0:
            draw = (x_s - drawn.mean(last.x_t, guided.denoised, guided.renoise)) / drawn.std
            if len(self.trajectories.levels) == 1 and draw.square().mean() < 0.25:
                eta = f"{self.eta:g}"
                raise SettingError(
                    f"the scheduler drew less noise than eta {eta} says: call the pipeline with eta={eta}"
                )
            self.source.record_noise(last.predictions, drawn.std, draw)
        with full_precision(x_s):
            self.state = self.guidance.update(self.state, step, last.x_t, x_s, last.predictions, guided)

    def _variance(self) -> Variance:
        """The variance that the scheduler draws with.

        Raises:
            SettingError: its kernel is not known.
        """
        name, config = type(self.scheduler).__name__, self.scheduler.config
        if name not in ("DDPMScheduler", "DDIMScheduler"):
            raise SettingError(
                f"{name} draws from no Gaussian kernel that is known here, and a posterior is tracked by one: "
                "pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)"
            )
        kind = config.variance_type if name == "DDPMScheduler" else "fixed_small"
        if kind not in VARIANCES:
            raise SettingError(f"variance_type must be one of {', '.join(VARIANCES)}; the {name}'s is {kind}")
        if name == "DDPMScheduler" and self.eta != 1:
            raise SettingError(f"a DDPMScheduler draws with eta 1; got eta {self.eta:g}")
        if config.clip_sample or config.thresholding:
            raise SettingError(f"the {name} clips: {name}.from_config(..., clip_sample=False, thresholding=False)")
        return VARIANCES[kind]
