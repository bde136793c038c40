"""The one reverse loop, whatever the guidance, the network or the data."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from dng_lightning.divergence import DivergenceSource
from dng_lightning.errors import SettingError, check_0_to_1
from dng_lightning.guidance.base import Guidance, Guided, Step
from dng_lightning.predictors import Predictor
from dng_lightning.schedule import NoiseSchedule, Variance


class ImageNoise:
    """Standard normal draws in which image i depends on seed i alone: not on batch, order, device or process.

    Drawn on the CPU, one generator an image, and then moved.

    Args:
        seeds: one an image, in [0, 2^32): torch's generator takes no more of them.
        shape: of one image, (C, H, W).
        device: where the draws are wanted.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def __call__(self) -> Tensor:
        """The next draw of every image, (B, C, H, W)."""
        draws = torch.empty(len(self.generators), *self.shape, dtype=torch.float32)  # whatever the trainer's default
        for image, generator in zip(draws, self.generators, strict=True):
            image.normal_(generator=generator)
        return draws.to(self.device)


class Probes:
    """Vectors of random signs in which image i depends on image i of ``x_T`` alone; no other draw changes for them.

    Args:
        x_T: what the chain starts from, (B, ...).
    """

    def __init__(self, x_T: Tensor) -> None:
        self.x_T = x_T

    @cached_property
    def noise(self) -> ImageNoise:
        """What the signs are taken of."""
        seeds = self.x_T.float().cpu().flatten(1).view(torch.int32).long().sum(1) % 2**32
        return ImageNoise(seeds.tolist(), self.x_T.shape[1:], self.x_T.device)

    def __call__(self) -> Tensor:
        """The next vector of every image, (B, ...), of -1 and 1."""
        return torch.where(self.noise() < 0, -1, 1).to(self.x_T.dtype)


@dataclass(frozen=True)
class Sampler:
    """How the reverse chain is walked.

    Attributes:
        steps: number of steps, in 1..T, evenly spaced over the levels.
        eta: 1 is ancestral sampling (DDPM), 0 is deterministic (DDIM); in [0, 1]. Below 1 what a guidance tracks may be
            biased, and a warning says so (``Guidance.bias``).
        variance: of the noise at eta = 1: "beta_tilde", or "beta", the larger one of the authors' release.
        clip: bound on the denoised prediction, None for none; sampler and posterior share it.

    Raises:
        SettingError: a setting is out of its range.
    """

    steps: int = 100
    eta: float = 1.0
    variance: Variance = "beta_tilde"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SettingError(f"steps must be at least 1; got {self.steps}")
        check_0_to_1(eta=self.eta)
        if self.variance not in ("beta_tilde", "beta"):
            raise SettingError(f"variance must be beta_tilde or beta; got {self.variance}")
        if self.variance == "beta" and self.eta != 1:
            raise SettingError("variance beta goes with eta 1 only")
        if self.clip is not None and not self.clip > 0:
            raise SettingError(f"clip must be positive; got {self.clip}")


class Trajectories:
    """Notes what a guidance says along the chain, given to ``sample`` as ``on_step``.

    Attributes:
        levels: the level t that each step starts from, (S,).
    """

    def __init__(self) -> None:
        self.levels: list[int] = []
        self._scales: list[Tensor] = []
        self._posteriors: list[Tensor] = []

    def __call__(self, step: Step, guided: Guided, x_s: Tensor) -> None:
        """Note a step."""
        self.note(step, guided)

    def note(self, step: Step, guided: Guided) -> None:
        """The same of a step that has not been taken yet."""
        self.levels.append(step.t)
        self._scales.append(guided.scale)
        if guided.posterior is not None:
            self._posteriors.append(guided.posterior.sum(1).float())

    @property
    def scale(self) -> Tensor:
        """Guidance scale at each step, (B, S)."""
        return torch.stack(self._scales, 1)

    @property
    def posterior(self) -> Tensor | None:
        """Sum of the forbidden classes' posteriors before each step, (B, S); None if not tracked."""
        return torch.stack(self._posteriors, 1) if self._posteriors else None


def full_precision(like: Tensor) -> torch.autocast:
    """A guidance's arithmetic is done in this: mixed precision is for networks, and would round a push to 8 bits."""
    return torch.autocast(like.device.type, enabled=False)


@torch.no_grad()
def sample(
    predictor: Predictor,
    guidance: Guidance,
    schedule: NoiseSchedule,
    noise: Callable[[], Tensor],
    sampler: Sampler | None = None,
    wanted: Tensor | None = None,
    on_step: Callable[[Step, Guided, Tensor], None] | None = None,
) -> Tensor:
    """Draw images by walking the reverse chain from pure noise, guided.

    Args:
        predictor: gives the noise predictions.
        guidance: turns them into one.
        schedule: the noise levels that the networks were trained on.
        noise: gives a standard normal draw (B, ...) at each call; the first one starts the chain.
        sampler: how to walk; None for 100 ancestral steps.
        wanted: the class that each image shall show, (B,); None for unconditional images.
        on_step: called after each step with the step, what the guidance said, and the new state.

    Returns:
        x_0, (B, ...), not clamped.

    Raises:
        SettingError: more steps than levels, the guidance's settings do not fit the forbidden classes, or it needs a
            posterior, an observer or an attention that the predictor does not give, or a wanted class and there is
            none.
    """
    if guidance.needs.classifier and not predictor.gives_posterior:
        raise SettingError(f"{type(guidance).__name__} needs p(c | x_t): wrap the predictor in WithPosterior")
    if guidance.needs.observed and not predictor.gives_observation:
        raise SettingError(f"{type(guidance).__name__} needs an observer: wrap the predictor in WithObserver")
    if guidance.needs.attending is not None and not predictor.gives_attention:
        raise SettingError(f"{type(guidance).__name__} acts in the attention to a text: it needs a TextPredictor")
    if guidance.needs.wanted and wanted is None:
        raise SettingError(f"{type(guidance).__name__} guides toward a class: say which are wanted")
    guidance, sampler = guidance.on(schedule), sampler or Sampler()
    if warning := guidance.bias(sampler.eta):
        warnings.warn(warning, stacklevel=3)  # of whoever calls, above the decorator
    grid = schedule.levels(sampler.steps)
    x = float(schedule.sigma[-1]) * noise()
    state = guidance.start(x, predictor.classes)
    source = DivergenceSource(predictor, Probes(x), sampler.eta)
    for index, (t, s) in enumerate(pairwise(grid)):
        drawn = schedule.transition(t, s, eta=sampler.eta, variance=sampler.variance, clip=sampler.clip)
        evidence = schedule.transition(t, s, variance=sampler.variance, clip=sampler.clip)
        step = Step(index, sampler.steps, t, s, evidence, sampler.eta, drawn)
        predictions = source.predict(x, t, guidance.asks(state, step), wanted)
        with full_precision(x):
            guided = guidance.guide(predictions, state, step)
        x_s = drawn.mean(x, guided.eps, guided.renoise)
        if drawn.variance > 0:
            draw = noise()
            source.drawn(predictions, drawn.variance**0.5, draw)
            x_s = x_s + drawn.variance**0.5 * draw
        with full_precision(x):
            state = guidance.observe(state, step, x, x_s, predictions)
        x = x_s
        if on_step is not None:
            on_step(step, guided, x)
    return x
