"""Euler and DPM-Solver++ of diffusers: a guidance along them draws what it draws in our sampler."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosted import MEANS, Hosted, generators, start
from mixture import GaussianMixture

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, NegativePrompting, Unguided
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.sampling import ImageNoise, Sampler, Trajectories, sample
from dng_lightning.schedule import NoiseSchedule

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")

from dng_lightning.text_to_image.scheduler_bridge import PipelineGuidance  # noqa: E402

# odds of at most 4: rounding is magnified by no more
TRACKED = DynamicNegativeGuidance(1, TrackedPosterior(prior=0.5, p_max=0.8))
UNBIASED = replace(TRACKED, posterior=replace(TRACKED.posterior, divergence=1))
SDE = {"algorithm_type": "sde-dpmsolver++"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
KINDS: dict[str, tuple[Any, dict[str, Any], Sampler]] = {  # scheduler, its settings, our sampler
    "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}, Sampler(12)),
    "Euler ancestral, v": (
        diffusers.EulerAncestralDiscreteScheduler, {"prediction_type": "v_prediction"}, Sampler(12),
    ),
    "Euler": (diffusers.EulerDiscreteScheduler, {}, Sampler(12, eta=0.0)),
    "Euler, Karras": (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}, Sampler(12, eta=0.0)),
    "DPM-Solver++ SDE": (diffusers.DPMSolverMultistepScheduler, SDE, Sampler(12, order=2)),
    "DPM-Solver++ SDE, Karras": (
        diffusers.DPMSolverMultistepScheduler, SDE | {"use_karras_sigmas": True}, Sampler(12, order=2),
    ),
    "DPM-Solver++ SDE, order 1": (diffusers.DPMSolverMultistepScheduler, SDE | {"solver_order": 1}, Sampler(12)),
    "DPM-Solver++ SDE of a flow": (diffusers.DPMSolverMultistepScheduler, SDE | FLOW, Sampler(12, order=2)),
    "DPM-Solver++": (diffusers.DPMSolverMultistepScheduler, {}, Sampler(12, eta=0.0, order=2)),
    "DPM-Solver++ of a flow": (diffusers.DPMSolverMultistepScheduler, FLOW, Sampler(12, eta=0.0, order=2)),
}  # fmt: skip


def of_kind(name: str, guidance: Guidance) -> tuple[Hosted, Sampler]:
    kind, settings, sampler = KINDS[name]
    return Hosted(kind(**settings), guidance), sampler


@pytest.mark.parametrize("guidance", [UNBIASED, NegativePrompting(0.5)], ids=["tracked", "constant"])
@pytest.mark.parametrize("name", KINDS)
def test_it_draws_what_our_sampler_draws(name: str, guidance: Guidance):
    hosted, sampler = of_kind(name, guidance)
    hosted.scheduler.set_timesteps(12)
    levels = hosted.guidance.kind.levels()[::-1]
    schedule = NoiseSchedule(
        torch.tensor([level.alpha for level in levels[1:]]),
        torch.tensor([level.sigma for level in levels[1:]]),
        torch.tensor([level.timestep for level in levels]),
    )
    noise = generators(8)
    x_T, first = start(noise), levels[-1].sigma
    if hosted.scheduler.init_noise_sigma == 1:
        x_T = first * x_T  # the noisiest level's width, which DPM-Solver++ takes for 1
    found = hosted.draw(x_T, noise)

    seen = Trajectories()
    predictor = GaussianMixture(schedule, MEANS, 0.3).shared([0])
    expected = sample(predictor, guidance, schedule, ImageNoise(range(8), (2,)), sampler, [seen])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    if seen.posterior is not None:
        torch.testing.assert_close(hosted.guidance.trajectories.posterior, seen.posterior, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", KINDS)
def test_zero_scale_is_unguided_bit_for_bit(name: str):
    drawn = []
    for guidance in (Unguided(), replace(UNBIASED, scale=0.0), NegativePrompting(0.0)):
        hosted, _ = of_kind(name, guidance)
        hosted.scheduler.set_timesteps(6)
        noise = generators(4)
        drawn.append(hosted.draw(start(noise), noise))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def refused(scheduler: Any, guidance: Guidance = TRACKED) -> str:
    with pytest.raises(SettingError) as caught:
        PipelineGuidance(SimpleNamespace(scheduler=scheduler), guidance)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_solvers_that_cannot_be():
    solver = diffusers.DPMSolverMultistepScheduler
    assert "solver_order must be 1 or 2; got 3" in refused(solver(solver_order=3, **SDE))
    assert "solver_type must be midpoint; got heun" in refused(solver(solver_type="heun", **SDE))
    assert "final_sigmas_type must be zero" in refused(solver(final_sigmas_type="sigma_min", **SDE))
    line = refused(solver())
    assert line.startswith("DPMSolverMultistepScheduler adds no noise")
    assert 'algorithm_type="sde-dpmsolver++")' in line
    assert "EulerAncestralDiscreteScheduler.from_config" in refused(diffusers.EulerDiscreteScheduler())
    assert "the DPMSolverMultistepScheduler clips" in refused(solver(thresholding=True, **SDE))
    continuous = diffusers.EulerDiscreteScheduler(timestep_type="continuous")
    assert "timestep_type must be discrete" in refused(continuous, UNBIASED)
