"""The noise levels and kernels of diffusers' schedulers.

A kind combines how the levels are read (``BetaLevels``, ``SigmaLevels``, ``FlowLevels``), the eta of the kernel, and
the order of the solver. To add a scheduler, add a function to ``KINDS``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch

from dng_lightning.errors import SettingError, check_0_to_1
from dng_lightning.interfaces import Step
from dng_lightning.kernel import Kernel, NoiseLevel, Variance
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained import diffusers_format
from dng_lightning.sampling.second_order import extrapolation
from dng_lightning.schedule import NoiseSchedule

# variance types of DDPMScheduler
VARIANCES: dict[str, Variance] = {"fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta"}
ANCESTRAL_FLOW = "FlowMatchAncestralScheduler.from_config(pipeline.scheduler.config)"


class Levels(Protocol):
    """Reads the noise levels of a scheduler.

    Attributes:
        schedule: noise levels of the networks' training.
        prediction: what the networks predict.
    """

    schedule: NoiseSchedule
    prediction: Prediction

    def chain(self) -> list[NoiseLevel]:
        """The levels of the scheduler's current timesteps, and the last one, the data."""
        ...


class BetaLevels:
    """Levels of a DDPM scheduler with betas, which visits some of the T timesteps. See ``Levels``.

    Args:
        scheduler: scheduler of diffusers.

    Raises:
        SettingError: its levels or its prediction are not supported.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.schedule = diffusers_format.schedule_of(scheduler)
        self.prediction: Prediction = diffusers_format.prediction_of(scheduler)
        self.schedule.check(self.prediction)

    def chain(self) -> list[NoiseLevel]:
        """See ``Levels.chain``."""
        return [self.schedule.level(int(timestep) + 1) for timestep in self.scheduler.timesteps] + [
            self.schedule.level(0)
        ]


class SigmaLevels(BetaLevels):
    """Levels of a DDPM scheduler with ``sigmas``, which are sigma / alpha and may lie between its timesteps."""

    def chain(self) -> list[NoiseLevel]:
        """See ``Levels.chain``; the network's input is the DDPM's x_t, even if the scheduler's state is x_t / alpha."""
        alphas = [(1 + sigma**2) ** -0.5 for sigma in self.scheduler.sigmas.tolist()]
        timesteps = [*self.scheduler.timesteps.tolist(), -1]
        pairs = zip(self.scheduler.sigmas.tolist(), alphas, timesteps, strict=True)
        return [NoiseLevel(alpha, sigma * alpha, timestep) for sigma, alpha, timestep in pairs]


class FlowLevels:
    """Levels of a rectified flow, from the scheduler's ``sigmas`` with shift, ``mu`` and custom values.

    Args:
        scheduler: scheduler of diffusers.

    Raises:
        SettingError: its sigmas run from the data to noise.
    """

    prediction: Prediction = "flow"

    def __init__(self, scheduler: Any) -> None:
        if scheduler.config.get("invert_sigmas"):
            raise SettingError(f"the invert_sigmas of its {type(scheduler).__name__} is not supported: set it to false")
        self.scheduler, count = scheduler, scheduler.config.num_train_timesteps
        u = torch.arange(1, count + 1, dtype=torch.double) / count
        self.schedule = NoiseSchedule(1 - u, u, torch.arange(count + 1))

    def chain(self) -> list[NoiseLevel]:
        """See ``Levels.chain``."""
        sigmas, timesteps = self.scheduler.sigmas.tolist(), [*self.scheduler.timesteps.tolist(), 0.0]
        timesteps = timesteps[: len(sigmas)]  # LTX's custom sigmas already have a timestep at the data
        return [NoiseLevel(1 - sigma, sigma, t) for sigma, t in zip(sigmas, timesteps, strict=True)]


@dataclass(frozen=True)
class SchedulerKind:
    """Noise levels and kernels of a scheduler.

    Attributes:
        levels: reads the levels.
        eta: 1 for the ancestral kernel, 0 for no noise.
        variance: variance of the noise at eta = 1.
        step_eta: computes the eta of each step from its ancestral kernel; None for the same eta in all steps.
        order: order of the solver, 1 or 2.
    """

    levels: Levels
    eta: float = 1.0
    variance: Variance = "beta_tilde"
    step_eta: Callable[[Kernel], float] | None = None
    order: int = 1

    def chain(self) -> list[Step]:
        """The steps of the scheduler's current timesteps."""
        levels, steps = self.levels.chain(), []
        for index, (t, s) in enumerate(pairwise(levels)):
            kernel = Kernel(t, s, kind=self.variance)
            eta = self.step_eta(kernel) if self.step_eta else self.eta
            factor = extrapolation(levels, index) if self.order == 2 else 0.0
            steps.append(Step(index, len(levels) - 1, kernel, kernel if eta == 1 else Kernel(t, s, eta), factor))
        return steps


def kind_of(scheduler: Any, eta: float | None, tracks: bool) -> SchedulerKind:
    """The kind of a scheduler.

    Args:
        scheduler: scheduler of diffusers.
        eta: ``eta`` of the pipeline's call, in [0, 1]; None for the scheduler's, which is 1 for a ``DDIMScheduler``.
        tracks: whether a posterior is tracked without the divergence, which a deterministic sampler needs.

    Raises:
        SettingError: the scheduler is not supported, or a setting is out of its range.
    """
    name = type(scheduler).__name__
    if name not in KINDS:
        raise SettingError(
            f"{name} is not supported, because a tracked posterior needs a known Gaussian kernel: "
            f"pipeline.scheduler = {_instead(scheduler)}"
        )
    if eta is not None:
        check_0_to_1(eta=eta)
    if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
        raise SettingError(f"the {name} clips: use {name}.from_config(..., clip_sample=False, thresholding=False)")
    kind = KINDS[name](scheduler, eta)
    if eta not in (None, kind.eta):
        raise SettingError(f"a {name} has eta {kind.eta:g}; got eta {eta:g}")
    if tracks and kind.eta == 0 and name != "DDIMScheduler":
        raise SettingError(
            f"{name} adds no noise, which biases a tracked posterior: pipeline.scheduler = "
            f"{_instead(scheduler)}, or set the posterior's divergence to 1 (twice the network's work) where it has one"
        )
    return kind


def _ddpm(scheduler: Any, eta: float | None) -> SchedulerKind:
    kind = scheduler.config.variance_type
    if kind not in VARIANCES:
        raise SettingError(f"variance_type must be one of {', '.join(VARIANCES)}; the DDPMScheduler's is {kind}")
    return SchedulerKind(BetaLevels(scheduler), variance=VARIANCES[kind])


def _ddim(scheduler: Any, eta: float | None) -> SchedulerKind:
    return SchedulerKind(BetaLevels(scheduler), 1.0 if eta is None else eta)


def _flow_ancestral(scheduler: Any, eta: float | None) -> SchedulerKind:
    return SchedulerKind(FlowLevels(scheduler))


def _flow_euler(scheduler: Any, eta: float | None) -> SchedulerKind:
    if scheduler.config.stochastic_sampling:
        raise SettingError(
            "stochastic_sampling replaces all of the noise at each step, so no posterior can be tracked: "
            f"pipeline.scheduler = {ANCESTRAL_FLOW}"
        )
    return SchedulerKind(FlowLevels(scheduler), eta=0.0)


def _flow_ltx(scheduler: Any, eta: float | None) -> SchedulerKind:
    """An Euler step below the next level, then noise up to it: x_coef = alpha_s sigma_down / (alpha_down sigma_t)."""
    own = float(scheduler.config.eta)
    if scheduler.config.s_noise != 1:
        raise SettingError(f"the LTXEulerAncestralRFScheduler's s_noise must be 1; got {scheduler.config.s_noise}")

    def step_eta(kernel: Kernel) -> float:
        t, s = kernel.level, kernel.next_level
        down = s.sigma * (1 + (s.sigma / t.sigma - 1) * own)
        variance = s.sigma**2 - (down * s.alpha / (1 - down)) ** 2
        return math.sqrt(max(variance, 0.0) / kernel.beta_tilde) if kernel.beta_tilde > 0 else 1.0

    return SchedulerKind(FlowLevels(scheduler), own, step_eta=step_eta)


def _euler(scheduler: Any, eta: float | None) -> SchedulerKind:
    """DDIM, in the variable x_t / alpha."""
    if scheduler.config.timestep_type != "discrete":
        raise SettingError("the EulerDiscreteScheduler's timestep_type must be discrete; got continuous")
    return SchedulerKind(SigmaLevels(scheduler), eta=0.0)


def _euler_ancestral(scheduler: Any, eta: float | None) -> SchedulerKind:
    """The ancestral kernel, in the variable x_t / alpha."""
    return SchedulerKind(SigmaLevels(scheduler))


def _dpm_solver(scheduler: Any, eta: float | None) -> SchedulerKind:
    """DPM-Solver++ of order 1 or 2, midpoint form, see ``sampling.second_order``."""
    name, config = type(scheduler).__name__, scheduler.config
    known = {
        "algorithm_type": ("sde-dpmsolver++", "dpmsolver++"),
        "solver_order": (1, 2),
        "solver_type": ("midpoint",),
        "final_sigmas_type": ("zero",),
    }
    for setting, values in known.items():
        if config[setting] not in values:
            names = " or ".join(map(str, values))
            raise SettingError(f"the {name}'s {setting} must be {names}; got {config[setting]}")
    levels = FlowLevels(scheduler) if config.get("use_flow_sigmas") else SigmaLevels(scheduler)
    sde = config.algorithm_type.startswith("sde")
    return SchedulerKind(levels, 1.0 if sde else 0.0, order=config.solver_order)


def _noisy(scheduler: Any) -> tuple[str, dict[str, Any]]:
    """A class with noise of the levels of a ``scheduler``, and its settings besides those of the ``scheduler``."""
    name, config = type(scheduler).__name__, scheduler.config
    if name == "DPMSolverMultistepScheduler":
        return name, {"algorithm_type": "sde-dpmsolver++"}
    if name == "EulerDiscreteScheduler":
        return "EulerAncestralDiscreteScheduler", {}
    if name.startswith("FlowMatch"):
        return "FlowMatchAncestralScheduler", {}
    if config.get("use_flow_sigmas"):
        return "FlowMatchAncestralScheduler", {"shift": config.get("flow_shift", 1.0)}
    return "DDPMScheduler", {}


def ancestral(scheduler: Any) -> Any:
    """An ancestral scheduler with the noise levels of a ``scheduler``; itself, if it is one of ``KINDS`` with eta 1."""
    import diffusers  # slow to import

    from dng_lightning.text_to_image.flow_match_ancestral import FlowMatchAncestralScheduler

    own = type(scheduler).__name__
    if own != "DDIMScheduler" and own in KINDS and KINDS[own](scheduler, None).eta == 1:
        return scheduler
    name, settings = _noisy(scheduler)
    if "shift" in settings:
        return FlowMatchAncestralScheduler(**settings)
    if name == "DDPMScheduler":
        settings = {"variance_type": "fixed_small", "clip_sample": False, "thresholding": False}
    kind: Any = FlowMatchAncestralScheduler if name.startswith("FlowMatch") else getattr(diffusers, name)
    return kind.from_config(scheduler.config, **settings)


def _instead(scheduler: Any) -> str:
    """The scheduler that replaces one that is not supported, for the message."""
    name, settings = _noisy(scheduler)
    if "shift" in settings:
        return f"{name}(shift={settings['shift']:g})"
    more = [f'{setting}="{value}"' for setting, value in settings.items()]
    return f"{name}.from_config({', '.join(['pipeline.scheduler.config', *more])})"


KINDS: dict[str, Callable[[Any, float | None], SchedulerKind]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "EulerDiscreteScheduler": _euler,
    "FlowMatchAncestralScheduler": _flow_ancestral,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "LTXEulerAncestralRFScheduler": _flow_ltx,
}
