"""Any guidance in a stock diffusers pipeline.

    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from dng_lightning import DynamicNegativeGuidance, PositiveAndNegative, TrackedPosterior
    from dng_lightning.text_to_image import guided

    pipeline = StableDiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    guidance = PositiveAndNegative(DynamicNegativeGuidance(5, TrackedPosterior(prior=0.01)), cfg_scale=7.5)
    with guided(pipeline, guidance) as hosted:
        images = pipeline("a medieval feast", negative_prompt="roasted meat").images
    print(hosted.trajectories.posterior)  # (images, steps)

The pipeline blends two predictions of its U-Net, uncond + w (cond - uncond). Where both are the guided prediction, the
blend is too, whatever w: the U-Net's forward is replaced by one that returns the guided prediction twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import denoised_of
from dng_lightning.sampling.predictors import ClassConditionalPredictor
from dng_lightning.text_to_image.optional_deps import PIPELINES
from dng_lightning.text_to_image.scheduler_bridge import PipelineGuidance
from dng_lightning.text_to_image.text_embeddings import NullEmbedding, TextEmbeddings


@contextmanager
def guided(pipeline: Any, guidance: Guidance, eta: float | None = None) -> Iterator[PipelineGuidance]:
    """Have a pipeline draw its images with a guidance, each away from its ``negative_prompt``; a context manager.

    The pipeline is called as usual. Its ``guidance_scale`` must be above 1, else it reads no negative prompt; it has no
    other effect, as classifier-free guidance is a guidance too (``PositiveAndNegative`` has it on both sides).

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline`` with a scheduler of
            ``scheduler_kinds.KINDS``; a ``DDIMScheduler`` is exact where the steps divide its timesteps.
        guidance: the method.
        eta: what the pipeline is called with, for a ``DDIMScheduler``; see ``PipelineGuidance``.

    Yields:
        the guidance; its ``trajectories`` are the scale and the posterior along the chain.

    Raises:
        SettingError: this pipeline, scheduler or guidance cannot be used, or it is called without a negative prompt.
    """
    kind = type(pipeline).__name__
    if kind not in PIPELINES:
        raise SettingError(f"guided goes with a {' or a '.join(PIPELINES)}; got a {kind}")
    if pipeline.text_encoder is None:
        raise SettingError("guided reads the empty prompt: give the pipeline its text_encoder")
    unet, hosted = pipeline.unet, PipelineGuidance(pipeline, guidance, eta)
    before, ours = vars(unet).get("forward"), GuidedForward(pipeline, hosted)

    def check(*call: Any) -> None:
        if unet.forward is not ours:  # as accelerate does that moves weights, after each call of a pipeline
            raise SettingError("the U-Net's forward was replaced by another library: call the pipeline in a new guided")

    unet.forward, watch = ours, unet.register_forward_pre_hook(check)
    try:
        yield hosted
    finally:
        watch.remove()
        if unet.forward is ours:
            del unet.forward
            if before is not None:
                unet.forward = before


class GuidedForward:
    """The forward of a pipeline's U-Net, with the guided prediction as each of its outputs.

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.
        hosted: the guidance.
    """

    def __init__(self, pipeline: Any, hosted: PipelineGuidance) -> None:
        self.pipeline, self.hosted, self.network = pipeline, hosted, pipeline.unet.forward
        where = {"device": pipeline._execution_device, "num_images_per_prompt": 1}
        with torch.no_grad():
            self.empty = NullEmbedding(pipeline.encode_prompt("", do_classifier_free_guidance=True, **where))

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """See ``UNet2DConditionModel.forward``, which takes more; these are the arguments that the pipelines give.

        Raises:
            SettingError: they give no negative prompt, or a conditioning that is not supported.
        """
        added, guidance = added_cond_kwargs or {}, self.hosted.guidance
        if timestep_cond is not None or "image_embeds" in added:
            raise SettingError("guided supports neither models conditioned on a guidance scale nor image prompts")
        sides = 2 if self.pipeline.do_classifier_free_guidance else 1
        if sides == 1 and guidance.needs().negatives:
            name = display_name(guidance)
            raise SettingError(f"{name} avoids something: call the pipeline with a guidance_scale above 1")
        x_t = sample[: len(sample) // sides]
        self.empty.check(guidance, encoder_hidden_states[: len(x_t)] if sides == 2 else None)
        # negative prompts, prompts, and the null text; a class is a row of them
        texts = TextEmbeddings(encoder_hidden_states, added.get("text_embeds")).joined(self.empty.null)
        rows = torch.arange(len(x_t), device=x_t.device)

        def denoiser(x_t: Tensor, level: NoiseLevel, rows: Tensor | None) -> Tensor:
            assert rows is not None
            texts_of, more = texts[rows], None
            if added:
                more = {"text_embeds": texts_of.pooled, "time_ids": added["time_ids"][-1:].expand(len(x_t), -1)}
            given = {"cross_attention_kwargs": cross_attention_kwargs, "added_cond_kwargs": more}
            timesteps = torch.full((len(x_t),), level.timestep, device=x_t.device)
            (output,) = self.network(x_t.to(sample.dtype), timesteps, texts_of.tokens, return_dict=False, **given)
            return denoised_of(output.float(), x_t, level.alpha, level.sigma, self.hosted.prediction)

        prompts, null = rows + len(sample) - len(x_t), len(texts.tokens) - 1
        output = self.hosted.guide(ClassConditionalPredictor(denoiser, null, [rows], prompts), x_t, timestep)
        return (output.to(sample.dtype).repeat(sides, 1, 1, 1),)
