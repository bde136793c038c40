"""The noise levels and kernels of diffusers' schedulers.

To add a scheduler, add its class to ``KINDS`` and, if it is not ancestral, its eta to ``_eta``.
"""

import math
from itertools import pairwise
from typing import Any

import torch

from dng_lightning.errors import SettingError, check_in
from dng_lightning.interfaces import Step
from dng_lightning.kernel import Kernel, NoiseLevel, Variance
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained import diffusers_format
from dng_lightning.sampling.second_order import extrapolation
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.text_to_image.optional_deps import quiet

KINDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "DDIMScheduler": {},
    "DDPMScheduler": {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
    "DPMSolverMultistepScheduler": {  # DPM-Solver++ of order 1 or 2, see ``sampling.second_order``
        "algorithm_type": ("sde-dpmsolver++", "dpmsolver++"),
        "solver_order": (1, 2),
        "solver_type": ("midpoint",),
        "final_sigmas_type": ("zero",),
    },
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {"timestep_type": ("discrete",)},  # DDIM
    "FlowMatchAncestralScheduler": {"invert_sigmas": (False,)},
    "FlowMatchEulerDiscreteScheduler": {"invert_sigmas": (False,)},
    "LTXEulerAncestralRFScheduler": {"s_noise": (1,)},
}
"""Class of a scheduler -> its settings with a limited range, and the values that are supported."""


class SchedulerKind:
    """Noise levels and kernels of a scheduler of ``KINDS``.

    Args:
        scheduler: scheduler of diffusers.
        eta: ``eta`` of the pipeline's call, in [0, 1]; None for the scheduler's, which is 1 for a ``DDIMScheduler``.
        tracks: whether a posterior is tracked without the divergence, which a deterministic sampler needs.

    Attributes:
        schedule: noise levels of the networks' training.
        prediction: what the networks predict.
        eta: 1 for the ancestral kernel, 0 for no noise.
        variance: variance of the noise at eta = 1.
        order: order of the solver, 1 or 2.

    Raises:
        SettingError: the scheduler or one of its settings is not supported, or ``eta`` is out of its range.
    """

    prediction: Prediction

    def __init__(self, scheduler: Any, eta: float | None = None, tracks: bool = False) -> None:
        _check_settings(scheduler)
        name, config, own = type(scheduler).__name__, scheduler.config, _eta(scheduler)
        if eta is not None:
            check_in("[0, 1]", eta=eta)
            if name != "DDIMScheduler" and eta != own:
                raise SettingError(f"a {name} has eta {own:g}; got eta {eta:g}")
        self.eta = own if eta is None else eta
        if tracks and self.eta == 0 and name != "DDIMScheduler":
            raise SettingError(
                f"{name} adds no noise, which biases a tracked posterior: {_instead(scheduler)}, "
                "or set the posterior's divergence to 1 (twice the network's work) where it has one"
            )
        self.scheduler, self.is_flow = scheduler, _is_flow(scheduler)
        if self.is_flow:
            u = torch.arange(1, config.num_train_timesteps + 1, dtype=torch.double) / config.num_train_timesteps
            self.schedule, self.prediction = NoiseSchedule(1 - u, u, torch.arange(len(u) + 1)), "flow"
        else:
            self.schedule = diffusers_format.schedule_of(scheduler)
            self.prediction = diffusers_format.prediction_of(scheduler)
            self.schedule.check(self.prediction)
        self.variance: Variance = "beta" if config.get("variance_type") == "fixed_large" else "beta_tilde"
        self.order: int = config.get("solver_order", 1)

    def levels(self) -> list[NoiseLevel]:
        """The levels of the scheduler's current timesteps, and the last one, the data.

        Those of a flow, or of a DDPM with ``sigmas``, which are sigma / alpha, may lie between the levels of training.
        """
        timesteps = [*self.scheduler.timesteps.tolist(), 0.0 if self.is_flow else -1]
        if not hasattr(self.scheduler, "sigmas"):
            return [self.schedule.level(timestep + 1) for timestep in timesteps]
        levels = []
        for sigma, timestep in zip(self.scheduler.sigmas.tolist(), timesteps, strict=False):  # LTX's may end at 0 twice
            alpha = 1 - sigma if self.is_flow else (1 + sigma**2) ** -0.5
            levels.append(NoiseLevel(alpha, sigma if self.is_flow else sigma * alpha, timestep))
        return levels

    def chain(self) -> list[Step]:
        """The steps of the scheduler's current timesteps."""
        levels, steps = self.levels(), []
        for index, (t, s) in enumerate(pairwise(levels)):
            kernel = Kernel(t, s, kind=self.variance)
            is_ltx = type(self.scheduler).__name__.startswith("LTX")
            eta = _ltx_eta(kernel, self.eta) if is_ltx else self.eta
            factor = extrapolation(levels, index) if self.order == 2 else 0.0
            steps.append(Step(index, len(levels) - 1, kernel, kernel if eta == 1 else Kernel(t, s, eta), factor))
        return steps


def _check_settings(scheduler: Any) -> None:
    name, config = type(scheduler).__name__, scheduler.config
    if name not in KINDS:
        why = "because a tracked posterior needs a known Gaussian kernel"
        raise SettingError(f"{name} is not supported, {why}: {_instead(scheduler)}")
    if config.get("stochastic_sampling"):
        why = "replaces all of the noise at each step, so no posterior can be tracked"
        raise SettingError(f"stochastic_sampling {why}: {_instead(scheduler)}")
    if config.get("clip_sample") or config.get("thresholding"):
        raise SettingError(f"the {name} clips: use {name}.from_config(..., clip_sample=False, thresholding=False)")
    for setting, values in KINDS[name].items():
        if config[setting] not in values:
            raise SettingError(f"the {name}'s {setting} must be {' or '.join(map(str, values))}; got {config[setting]}")


def ancestral(scheduler: Any) -> Any:
    """An ancestral scheduler with the noise levels of a ``scheduler``; itself, if it is one of ``KINDS`` with eta 1."""
    import diffusers  # slow to import

    from dng_lightning.text_to_image.flow_match_ancestral import FlowMatchAncestralScheduler

    if type(scheduler).__name__ in KINDS.keys() - {"DDIMScheduler"} and _eta(scheduler) == 1:
        return scheduler
    name, settings = _noisy(scheduler)
    if name == "DDPMScheduler":
        settings = {"variance_type": "fixed_small", "clip_sample": False, "thresholding": False}
    kind: Any = FlowMatchAncestralScheduler if name.startswith("FlowMatch") else getattr(diffusers, name)
    with quiet():  # it warns of the settings that only the old class has
        return kind.from_config(scheduler.config, **settings)


def _is_flow(scheduler: Any) -> bool:
    return type(scheduler).__name__.startswith(("FlowMatch", "LTX")) or bool(scheduler.config.get("use_flow_sigmas"))


def _eta(scheduler: Any) -> float:
    """The eta of a scheduler's steps; for LTX its setting, see ``_ltx_eta``."""
    deterministic = ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
    if type(scheduler).__name__ in deterministic or scheduler.config.get("algorithm_type") == "dpmsolver++":
        return 0.0
    return float(scheduler.config.get("eta", 1.0))


def _ltx_eta(kernel: Kernel, eta: float) -> float:
    """Eta of LTX's step, from its ancestral kernel: an Euler step below the next level, then noise up to it.

    x_coef = alpha_s sigma_down / (alpha_down sigma_t).
    """
    t, s = kernel.level, kernel.next_level
    down = s.sigma * (1 + (s.sigma / t.sigma - 1) * eta)
    variance = s.sigma**2 - (down * s.alpha / (1 - down)) ** 2
    return math.sqrt(max(variance, 0.0) / kernel.beta_tilde) if kernel.beta_tilde > 0 else 1.0


def _noisy(scheduler: Any) -> tuple[str, dict[str, Any]]:
    """A class with noise of the levels of a ``scheduler``, and its settings besides those of the ``scheduler``."""
    name = type(scheduler).__name__
    if name == "DPMSolverMultistepScheduler":
        return name, {"algorithm_type": "sde-dpmsolver++"}
    if name == "EulerDiscreteScheduler":
        return "EulerAncestralDiscreteScheduler", {}
    if not _is_flow(scheduler):
        return "DDPMScheduler", {}
    shift = scheduler.config.get("flow_shift")
    return "FlowMatchAncestralScheduler", {} if shift is None else {"shift": shift}


def _instead(scheduler: Any) -> str:
    """The line of code that replaces a scheduler that is not supported, for messages."""
    name, settings = _noisy(scheduler)
    more = [f"{setting}={value!r}".replace("'", '"') for setting, value in settings.items()]
    return f"pipeline.scheduler = {name}.from_config({', '.join(['pipeline.scheduler.config', *more])})"
