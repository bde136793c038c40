"""Any guidance in a stock pipeline of diffusers'.

    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from dng_lightning import DynamicNegativeGuidance, PositiveAndNegative, TrackedPosterior
    from dng_lightning.text_to_image import guided

    pipeline = StableDiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    guidance = PositiveAndNegative(DynamicNegativeGuidance(5, TrackedPosterior(prior=0.01)), cfg_scale=7.5)
    with guided(pipeline, guidance) as hosted:
        images = pipeline("a medieval feast", negative_prompt="roasted meat").images
    print(hosted.trajectories.posterior)  # (images, steps)

The pipeline blends the two predictions that it asks its U-Net for, uncond + w (cond - uncond). If both of them are the
guided prediction, so is that, whatever w: the U-Net's forward is replaced by one that gives it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.text_to_image.optional_deps import PIPELINES
from dng_lightning.text_to_image.scheduler_bridge import PipelineGuidance
from dng_lightning.text_to_image.text_embeddings import EmbeddingPredictor, NullEmbedding, TextEmbeddings


@contextmanager
def guided(pipeline: Any, guidance: Guidance, eta: float = 1.0) -> Iterator[PipelineGuidance]:
    """As long as it lasts, a pipeline draws its images with a guidance, each away from its ``negative_prompt``.

    The pipeline is called as ever. Its ``guidance_scale`` must be above 1, for else it reads no negative prompt, and
    counts for nothing else: classifier-free guidance is a guidance too (``PositiveAndNegative`` has it on both sides).

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline`` with a ``DDPMScheduler``, or with a
            ``DDIMScheduler``, which is exact where the steps divide its timesteps.
        guidance: the method.
        eta: what the pipeline is called with, for a ``DDIMScheduler``; see ``PipelineGuidance``.

    Yields:
        what knows the scale and the posterior along the chain, in its ``trajectories``.

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
    """A pipeline's U-Net as the pipeline calls it, which gives the guided prediction for each of its answers.

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
        """See ``UNet2DConditionModel.forward``, which takes more; this is what the pipelines give.

        Raises:
            SettingError: they have no negative prompt, or something that a guidance does not know of.
        """
        added, guidance = added_cond_kwargs or {}, self.hosted.guidance
        if timestep_cond is not None or "image_embeds" in added:
            raise SettingError("guided knows neither models that are told a guidance scale nor prompts that are images")
        sides = 2 if self.pipeline.do_classifier_free_guidance else 1
        if sides == 1 and guidance.needs().negatives:
            raise SettingError(
                f"{display_name(guidance)} avoids something: call the pipeline with a guidance_scale above 1"
            )
        count = len(sample) // sides
        told = TextEmbeddings(encoder_hidden_states, added.get("text_embeds"))
        negatives, prompts = told[slice(-count)] if sides == 2 else None, told[slice(-count, None)]
        self.empty.check(guidance, negatives)

        def network(x_t: Tensor, timesteps: Tensor, texts: TextEmbeddings) -> Tensor:
            xl = (
                {"text_embeds": texts.pooled, "time_ids": added["time_ids"][-1:].expand(len(x_t), -1)}
                if added
                else None
            )
            more = {"cross_attention_kwargs": cross_attention_kwargs, "added_cond_kwargs": xl}
            output: Tensor = self.network(x_t.to(sample.dtype), timesteps, texts.tokens, return_dict=False, **more)[0]
            return output

        predictor = EmbeddingPredictor(network, self.hosted.prediction, prompts, negatives, self.empty.null)
        output = self.hosted.guide(predictor, sample[-count:], timestep)
        return (torch.cat([output.to(sample.dtype)] * sides),)
