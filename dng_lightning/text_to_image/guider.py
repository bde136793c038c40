"""Any guidance as a guider of diffusers' modular pipelines.

    from diffusers import DDPMScheduler, ModularPipeline
    from dng_lightning import DynamicNegativeGuidance, PositiveAndNegative, TrackedPosterior
    from dng_lightning.text_to_image.guider import Guider

    pipeline = ModularPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    pipeline.load_components()
    pipeline.update_components(scheduler=DDPMScheduler.from_config(pipeline.scheduler.config))
    guidance = PositiveAndNegative(DynamicNegativeGuidance(5, TrackedPosterior(prior=0.01)), cfg_scale=5)
    pipeline.update_components(guider=Guider(guidance, pipeline))
    images = pipeline(prompt="a medieval feast", negative_prompt="roasted meat", output="images")
    print(pipeline.guider.hosted.trajectories.posterior)  # (images, steps)

This file imports diffusers, which no other does before it is needed: so nothing imports this one.
"""

import json
from typing import Any

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import settings_json
from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import denoised_of
from dng_lightning.sampling.predictors import ALL, Predictor
from dng_lightning.text_to_image.scheduler_bridge import PipelineGuidance
from dng_lightning.text_to_image.text_embeddings import NullEmbedding, TextEmbeddings

try:
    import transformers  # noqa: F401  # what diffusers' text encoders are
    from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
    from diffusers.modular_pipelines.modular_pipeline import BlockState
    from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLTextEncoderStep
except ImportError as error:
    raise SettingError("a guider needs an extra: pip install 'dng-lightning[text-to-image]'") from error

PIPELINE = "StableDiffusionXLModularPipeline"


class Guider(BaseGuidance):
    """A guidance away from the ``negative_prompt`` of a modular pipeline's call.

    The U-Net is asked for the prompt, for the negative one, and for the empty one where the guidance needs that
    (``PositiveAndNegative``: classifier-free guidance on both sides), one after the other, at every step.

    Args:
        guidance: the method.
        pipeline: a ``StableDiffusionXLModularPipeline`` with its components; its scheduler as for ``guided``.
        eta: what the pipeline is called with, for a ``DDIMScheduler``; see ``PipelineGuidance``.

    Attributes:
        hosted: what knows the scale and the posterior along the chain, in its ``trajectories``.

    Raises:
        SettingError: this pipeline, scheduler or guidance cannot be used.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_null"]  # type: ignore[assignment]  # noqa: RUF012  # theirs

    def __init__(self, guidance: Guidance, pipeline: Any, eta: float = 1.0) -> None:
        super().__init__()
        kind = type(pipeline).__name__
        if kind != PIPELINE:
            raise SettingError(f"a Guider goes with a {PIPELINE}; got a {kind}")
        if not (pipeline.unet and pipeline.text_encoder and pipeline.text_encoder_2 and pipeline.scheduler):
            raise SettingError("the pipeline has not all of its components yet: pipeline.load_components() first")
        self.hosted = PipelineGuidance(pipeline, guidance, eta)
        config = {
            "guidance": json.loads(settings_json(guidance)),
            "eta": eta,
        }  # for whoever reads it: no guider can be made of it
        self.register_to_config(**config)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.empty = NullEmbedding(StableDiffusionXLTextEncoderStep.encode_prompt(pipeline, ""))

    @property
    def needs(self) -> Needs:
        """What the guidance does, or nothing where the pipeline has switched guiders off."""
        return self.hosted.guidance.needs() if self._enabled else Needs()

    @property
    def num_conditions(self) -> int:
        """How often the U-Net is asked at a step."""
        return 1 + self.needs.negatives + self.needs.null

    @property
    def is_conditional(self) -> bool:
        """Whether it is being asked for the prompt."""
        return self._count_prepared == 1

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """See ``BaseGuidance.set_state``; the first step begins a chain."""
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self.hosted.restart()

    def prepare_inputs(self, data: Any) -> list[BlockState]:
        """What the U-Net is told each time, given pairs of what it is told of the prompt and of the negative one.

        Raises:
            SettingError: there is no negative prompt, or one that nobody avoids.
        """
        needs, (prompts, negatives) = self.needs, data["prompt_embeds"]
        batches = [self._prepare_batch(data, 0, "pred_cond")]
        if self._enabled:
            self.empty.check(self.hosted.guidance, None if negatives is None else TextEmbeddings(negatives))
        if needs.negatives:
            batches.append(self._prepare_batch(data, 1, "pred_uncond"))
        if needs.null:
            null = self.empty.null[torch.zeros(len(prompts), dtype=torch.long, device=prompts.device)]
            told = {"prompt_embeds": (null.tokens,) * 2, "text_embeds": (null.pooled,) * 2}
            batches.append(self._prepare_batch(data | told, 1, "pred_null"))
        return batches

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Look at the latents that the U-Net is about to be shown."""
        super().prepare_models(denoiser)
        self._hook = denoiser.register_forward_pre_hook(self._look)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Look no longer."""
        self._hook.remove()

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_null: Tensor | None = None
    ) -> GuiderOutput:
        """What the scheduler is given, of the U-Net's answers (B, C, H, W)."""
        if not self._enabled:
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=pred_uncond)
        x_t, hosted = self._x_t.float(), self.hosted
        level = hosted.schedule.level(int(self._timestep) + 1)

        def denoised(output: Tensor) -> Tensor:
            return denoised_of(output.float(), x_t, level.alpha, level.sigma, hosted.prediction)

        base = denoised(pred_cond)
        negatives = base.new_empty(len(base), 0, *base.shape[1:])
        if pred_uncond is not None:
            negatives = denoised(pred_uncond).unsqueeze(1)
        predictions = Predictions(base, negatives, null=None if pred_null is None else denoised(pred_null))
        pred = hosted.guide(Evaluated(predictions), x_t, self._timestep).to(pred_cond.dtype)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _look(self, denoiser: nn.Module, args: tuple[Any, ...]) -> None:
        self._x_t: Tensor = args[0]


class Evaluated(Predictor):
    """Gives predictions that have been made, whatever it is asked for.

    Args:
        predictions: with a single forbidden condition, or none where nothing is avoided.
    """

    conditions = 1

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions
        self.class_labels = torch.empty(0)  # each image has its prompt

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        return self.predictions
