"""Ancestral sampling for diffusers' flow-matching pipelines.

    pipeline.scheduler = FlowMatchAncestralScheduler.from_config(pipeline.scheduler.config)

No other file imports this one, because it needs diffusers at import.
"""

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.kernel import Kernel, NoiseLevel
from dng_lightning.sampling.noise import ImageNoise, image_seeds

try:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
        FlowMatchEulerDiscreteSchedulerOutput,
    )
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise SettingError("a scheduler of diffusers needs an extra: pip install 'dng-lightning[diffusers]'") from error


class FlowMatchAncestralScheduler(FlowMatchEulerDiscreteScheduler):
    """Samples each step from the kernel q(x_s | x_t, x_0 = D) of the rectified flow; see ``Kernel``.

    It is the ancestral sampler (eta = 1) of the path x_t = (1 - sigma) x_0 + sigma eps, along which a posterior can be
    tracked at no further cost; diffusers' Euler scheduler follows the ODE instead. Except for ``step`` it equals the
    Euler scheduler: settings, shift by ``mu``, custom ``sigmas``, timesteps.

    The noise comes from ``generator``, one for all images or a list with one for each. Most flow-matching pipelines
    pass none: then the initial latents of each image seed its noise, so that image i depends on its own generator
    alone, for any batch.
    """

    sigmas: Tensor
    _step_index: int | None  # type: ignore[assignment]  # the base class starts with None

    def step(  # type: ignore[override]  # without the settings of a churn, which the Euler scheduler ignores
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """The state at the next level; see ``FlowMatchEulerDiscreteScheduler.step``.

        Args:
            model_output: velocity eps - x_0, (B, ...).
            timestep: one of ``timesteps``.
            sample: state x_t, (B, ...).
            generator: source of the noise; None to seed it by the initial latents.
            per_token_timesteps: not supported.
            return_dict: return an object instead of a tuple.

        Raises:
            SettingError: ``per_token_timesteps`` are given, or the timestep is an index.
        """
        if per_token_timesteps is not None:
            raise SettingError("FlowMatchAncestralScheduler does not support per_token_timesteps: leave them out")
        if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise SettingError("FlowMatchAncestralScheduler.step needs a timestep of scheduler.timesteps, not an index")
        x_t = sample.float()
        if self.step_index is None:
            self._init_step_index(timestep)  # type: ignore[arg-type]  # any tensor
            self._noise = ImageNoise(image_seeds(x_t), x_t.shape[1:], x_t.device)
        index = self._step_index
        assert index is not None

        sigma, next_sigma = self.sigmas[index : index + 2].tolist()
        kernel = Kernel(NoiseLevel(1 - sigma, sigma, 0), NoiseLevel(1 - next_sigma, next_sigma, 0))
        x_s = kernel.mean(x_t, x_t - sigma * model_output.float())
        if kernel.std > 0:
            if generator is None:
                z = self._noise()
            else:
                z = randn_tensor(x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype)
            x_s = x_s + kernel.std * z
        self._step_index = index + 1

        x_s = x_s.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=x_s) if return_dict else (x_s,)  # type: ignore[arg-type]
