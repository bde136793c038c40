"""What a guidance must know of each of diffusers' schedulers: its noise levels and the kernel that it draws from.

A kind is three things that are independent of each other: how the levels are read (``BetaLevels``, ``SigmaLevels``,
``FlowLevels``), how much of the ancestral kernel's noise is drawn between two of them, and the order of the solver. A
scheduler with another kernel is one function more in ``KINDS``.
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
        schedule: the levels that the networks were trained on.
        prediction: what they predict.
    """

    schedule: NoiseSchedule
    prediction: Prediction

    def chain(self) -> list[NoiseLevel]:
        """The levels that the scheduler is set to visit, one more than its timesteps."""
        ...


class BetaLevels:
    """Levels of a DDPM by its betas; the scheduler visits some of the T timesteps. See ``Levels``.

    Args:
        scheduler: of diffusers.

    Raises:
        SettingError: its levels or its prediction are not known.
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
    """Levels of a DDPM by the scheduler's ``sigmas``, which are sigma / alpha; between its timesteps too."""

    def chain(self) -> list[NoiseLevel]:
        """See ``Levels.chain``; the network is shown x_t of the DDPM, also where a scheduler's state is x_t / alpha."""
        alphas = [(1 + sigma**2) ** -0.5 for sigma in self.scheduler.sigmas.tolist()]
        timesteps = [*self.scheduler.timesteps.tolist(), -1]
        pairs = zip(self.scheduler.sigmas.tolist(), alphas, timesteps, strict=True)
        return [NoiseLevel(alpha, sigma * alpha, timestep) for sigma, alpha, timestep in pairs]


class FlowLevels:
    """Levels of a rectified flow by the scheduler's ``sigmas`` at the chain's start: shift, ``mu`` and custom ones.

    Args:
        scheduler: of diffusers.

    Raises:
        SettingError: its sigmas are not those of a flow from noise to the data.
    """

    prediction: Prediction = "flow"

    def __init__(self, scheduler: Any) -> None:
        if scheduler.config.get("invert_sigmas"):
            raise SettingError(f"the invert_sigmas of its {type(scheduler).__name__} is not known here")
        self.scheduler, count = scheduler, scheduler.config.num_train_timesteps
        u = torch.arange(1, count + 1, dtype=torch.double) / count
        self.schedule = NoiseSchedule(1 - u, u, torch.arange(count + 1))

    def chain(self) -> list[NoiseLevel]:
        """See ``Levels.chain``."""
        sigmas, timesteps = self.scheduler.sigmas.tolist(), [*self.scheduler.timesteps.tolist(), 0.0]
        timesteps = timesteps[: len(sigmas)]  # custom sigmas of LTX's have a timestep at the data already
        return [NoiseLevel(1 - sigma, sigma, t) for sigma, t in zip(sigmas, timesteps, strict=True)]


@dataclass(frozen=True)
class SchedulerKind:
    """Noise levels and kernels of a scheduler.

    Attributes:
        levels: reads the levels.
        eta: 1 where the ancestral kernel is drawn from, 0 where no noise is drawn.
        variance: of the noise at eta = 1.
        step_eta: eta of each step, from its ancestral kernel; None for the same in all.
        order: of the solver, 1 or 2.
    """

    levels: Levels
    eta: float = 1.0
    variance: Variance = "beta_tilde"
    step_eta: Callable[[Kernel], float] | None = None
    order: int = 1

    def chain(self) -> list[Step]:
        """The steps that the scheduler is set to take."""
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
        scheduler: of diffusers.
        eta: what the pipeline is called with, in [0, 1]; None for the scheduler's own, and 1 for a ``DDIMScheduler``.
        tracks: a posterior is tracked without the divergence that a deterministic sampler needs.

    Raises:
        SettingError: it does not draw from a Gaussian kernel that is known, or a setting is out of its range.
    """
    name = type(scheduler).__name__
    if name not in KINDS:
        raise SettingError(
            f"{name} draws from no Gaussian kernel that is known here, and a posterior is tracked by one: "
            f"pipeline.scheduler = {_instead(scheduler)}"
        )
    if eta is not None:
        check_0_to_1(eta=eta)
    if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
        raise SettingError(f"the {name} clips: {name}.from_config(..., clip_sample=False, thresholding=False)")
    kind = KINDS[name](scheduler, eta)
    if eta not in (None, kind.eta):
        raise SettingError(f"a {name} draws with eta {kind.eta:g}; got eta {eta:g}")
    if tracks and kind.eta == 0 and name != "DDIMScheduler":
        raise SettingError(
            f"{name} draws no noise, and a posterior tracked without is biased: pipeline.scheduler = "
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
            "stochastic_sampling draws all of the noise anew, and no posterior can be tracked through that: "
            f"pipeline.scheduler = {ANCESTRAL_FLOW}"
        )
    return SchedulerKind(FlowLevels(scheduler), eta=0.0)


def _flow_ltx(scheduler: Any, eta: float | None) -> SchedulerKind:
    """Euler to a level below, and noise back up to the next one: x_coef = alpha_s sigma_down / (alpha_down sigma_t)."""
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
    """DPM-Solver++ of order 1 or 2, by midpoints: ``sampling.second_order``."""
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


def ancestral(scheduler: Any) -> Any:
    """An ancestral scheduler with the noise levels of a ``scheduler``; itself, if it is one of ``KINDS`` with eta 1."""
    from diffusers import DDPMScheduler  # slow to import

    from dng_lightning.text_to_image.flow_match_ancestral import FlowMatchAncestralScheduler

    name, config = type(scheduler).__name__, scheduler.config
    if name != "DDIMScheduler" and name in KINDS and KINDS[name](scheduler, None).eta == 1:
        return scheduler
    if name.startswith("FlowMatch"):
        return FlowMatchAncestralScheduler.from_config(config)
    if config.get("use_flow_sigmas"):
        return FlowMatchAncestralScheduler(shift=config.get("flow_shift", 1.0))
    settings: dict[str, Any] = {"variance_type": "fixed_small", "clip_sample": False, "thresholding": False}
    return DDPMScheduler.from_config(config, **settings)  # type: ignore[no-untyped-call]


def _instead(scheduler: Any) -> str:
    """The scheduler to take in place of one that cannot be used."""
    if type(scheduler).__name__ == "DPMSolverMultistepScheduler":
        return 'DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, algorithm_type="sde-dpmsolver++")'
    if type(scheduler).__name__ == "EulerDiscreteScheduler":
        return "EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)"
    if scheduler.config.get("use_flow_sigmas"):
        return f"FlowMatchAncestralScheduler(shift={scheduler.config.get('flow_shift', 1.0):g})"
    flow = type(scheduler).__name__.startswith("FlowMatch")
    return ANCESTRAL_FLOW if flow else "DDPMScheduler.from_config(pipeline.scheduler.config)"


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
