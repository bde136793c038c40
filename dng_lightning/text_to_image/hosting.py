"""Any guidance along a chain that one of diffusers' schedulers walks.

A pipeline of diffusers' asks a network, makes one prediction of what it says, and lets its scheduler take the step. A
guidance hosted there changes that one prediction. Nobody tells it where the step went, so it looks back on each step at
the next one, whose x_t is what the scheduler, or whoever came after it, made of the last. The step to the data is never
looked back on: its kernel has no variance, so there is nothing to learn from it.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dng_lightning.divergence import DivergenceSource
from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance, Guided, Predictions, Step
from dng_lightning.guidance.naming import named
from dng_lightning.modules import pretrained
from dng_lightning.predictors import Predictor, levels
from dng_lightning.sampling import Probes, Sampler, Trajectories, full_precision
from dng_lightning.kernel import Variance
from dng_lightning.schedule import Transition
from dng_lightning.text_to_image.prompts import check_told

# The kinds of noise that DDPMScheduler draws; DDIMScheduler's is the first.
VARIANCES: dict[str, Variance] = {"fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta"}


@dataclass(frozen=True)
class Taken:
    """A step that has not been looked back on.

    Attributes:
        step: where it started and where it went.
        x_t: what it started from, (B, C, H, W).
        predictions: what was predicted there.
        guided: and what the guidance made of it.
    """

    step: Step
    x_t: Tensor
    predictions: Predictions
    guided: Guided


class Hosted:
    """A guidance in somebody else's sampler; for the same latents and noise it does what it does in ``sample``.

    A chain begins with the first step, and wherever a step does not go on from the last one or has another batch.

    Args:
        pipeline: of diffusers'; its ``scheduler`` walks the chain, a DDPMScheduler or a DDIMScheduler.
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
        check_told(guidance)
        if guidance.needs.attending is not None:
            raise SettingError(f"{named(guidance)} acts inside the attention, which is the pipeline's: name another")
        self.pipeline, self.scheduler, self.eta = pipeline, pipeline.scheduler, eta
        variance = self._variance()
        self.sampler = Sampler(eta=eta, variance=variance)
        self.schedule = pretrained.schedule_of(self.scheduler)
        self.prediction = pretrained.PREDICTIONS[self.scheduler.config.prediction_type]
        self.guidance = guidance.on(self.schedule)
        self.guidance.start(torch.empty(1, 1, 1, 1), 1)  # refuses priors that do not fit
        if warning := guidance.bias(eta):
            warnings.warn(warning, stacklevel=3)
        self.trajectories = Trajectories()
        self.restart()

    def restart(self) -> None:
        """The next step begins a chain."""
        self._last: Taken | None = None

    @torch.no_grad()
    def guide(self, predictor: Predictor, x_t: Tensor, timestep: Tensor | int) -> Tensor:
        """What the scheduler shall be given in the place of the network's output, (B, C, H, W) fp32.

        Args:
            predictor: gives the predictions of the prompts (the base), of the negative ones (K = 1), and the null.
            x_t: the latents (B, C, H, W).
            timestep: of the scheduler's; the first of a chain may be any.

        Raises:
            SettingError: the scheduler is another one now, or draws less noise than ``eta`` says.
        """
        if self.pipeline.scheduler is not self.scheduler:
            raise SettingError("the pipeline got another scheduler: give it first that, and then the guidance")
        x_t, t, last = x_t.float(), int(timestep) + 1, self._last
        if last is None or last.step.s != t or last.x_t.shape != x_t.shape:
            self._start(predictor, x_t)
        else:
            self._look_back(last, x_t)
        index = self.grid.index(t)
        s = self.grid[index + 1]
        kernel = self.schedule.transition(t, s, variance=self.sampler.variance)
        step = Step(index, len(self.grid) - 1, t, s, kernel, self.eta, self._drawn(t, s))
        self.source.predictor = predictor
        predictions = self.source.predict(x_t, t, self.guidance.asks(self.state, step))
        with full_precision(x_t):
            guided = self.guidance.guide(predictions, self.state, step)
        self.trajectories.note(step, guided)
        self._last = Taken(step, x_t, predictions, guided)
        return self._as_output(guided, x_t, step)

    def _start(self, predictor: Predictor, x_T: Tensor) -> None:
        self.grid = [int(timestep) + 1 for timestep in self.scheduler.timesteps] + [0]
        self.state = self.guidance.start(x_T, 1)
        self.source = DivergenceSource(predictor, Probes(x_T), self.eta)
        self.trajectories = Trajectories()

    def _look_back(self, last: Taken, x_s: Tensor) -> None:
        """Learn from where the last step went."""
        drawn = self._drawn(last.step.t, last.step.s)
        if drawn.variance > 0:
            width = drawn.variance**0.5
            draw = (x_s - drawn.mean(last.x_t, last.guided.eps, last.guided.renoise)) / width
            if len(self.trajectories.levels) == 1 and draw.square().mean() < 0.25:
                raise SettingError(
                    f"the scheduler drew less noise than eta {self.eta:g} says: call the pipeline with eta={self.eta:g}"
                )
            self.source.drawn(last.predictions, width, draw)
        with full_precision(x_s):
            self.state = self.guidance.observe(self.state, last.step, last.x_t, x_s, last.predictions)

    def _as_output(self, guided: Guided, x_t: Tensor, step: Step) -> Tensor:
        """What a network would have said that predicts this."""
        eps, drawn = guided.eps, self._drawn(step.t, step.s)
        if guided.renoise is not None:  # a scheduler knows but one noise: that which leads to the same mean
            eps = drawn.with_mean_moved(eps, drawn.mean(x_t, eps, guided.renoise) - drawn.mean(x_t, eps))
        return self.schedule.target(drawn.x0_hat(x_t, eps), levels(x_t, step.t), eps, self.prediction)

    def _drawn(self, t: int, s: int) -> Transition:
        return self.schedule.transition(t, s, eta=self.eta, variance=self.sampler.variance)

    def _variance(self) -> Variance:
        """What the scheduler draws with, if it is one that is known."""
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
        if config.prediction_type not in pretrained.PREDICTIONS:
            raise SettingError(f"the {name}'s prediction_type, {config.prediction_type}, is not known here")
        return VARIANCES[kind]
