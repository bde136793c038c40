"""A pipeline of diffusers' without a pipeline: its loop around a scheduler, with an exact mixture for a network."""

from types import SimpleNamespace
from typing import Any

import torch
from mixture import GaussianMixture, across
from torch import Tensor

from dng_lightning.guidance import Guidance
from dng_lightning.text_to_image.scheduler_bridge import PipelineGuidance

MEANS = [[-1.5, 0.0], [1.5, 0.0]]


class Hosted:
    """A pipeline's loop around a scheduler and a guidance, its network the exact mixture."""

    def __init__(self, scheduler: Any, guidance: Guidance, dimensions: int = 2) -> None:
        self.scheduler, self.guidance = scheduler, PipelineGuidance(SimpleNamespace(scheduler=scheduler), guidance)
        self.mixture = GaussianMixture(self.guidance.kind.schedule, across(MEANS, dimensions), 0.3)
        self.predictor = self.mixture.predictor(guidance, [0])

    def draw(self, x_t: Tensor, generator: Any = None, rounded: torch.dtype = torch.float32) -> Tensor:
        """x_0 from standard normal ``x_t`` (B, D) under the timesteps that are set."""
        noise, scheduler = {} if generator is None else {"generator": generator}, self.scheduler
        x_t = getattr(scheduler, "init_noise_sigma", 1.0) * x_t
        for timestep in scheduler.timesteps:
            shown = scheduler.scale_model_input(x_t, timestep) if hasattr(scheduler, "scale_model_input") else x_t
            output = self.guidance.guide(self.predictor, shown, timestep.to(rounded))
            x_t = scheduler.step(output, timestep, x_t, return_dict=False, **noise)[0]
        return x_t


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def start(drawn_from: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(2, generator=generator) for generator in drawn_from])
