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

A pipeline combines two predictions of its network, uncond + w (cond - uncond). ``guided_forward.py`` replaces both by
the guided prediction, so that their combination is the guided prediction for any w, also after a rescaling by the norm
of one of them.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.sampling.recorders import Recorder
from dng_lightning.text_to_image.attention import replaced
from dng_lightning.text_to_image.guided_forward import GuidedForward, PipelineTexts
from dng_lightning.text_to_image.layouts import LAYOUTS
from dng_lightning.text_to_image.prompts import texts_of
from dng_lightning.text_to_image.scheduler_bridge import PipelineGuidance


@contextmanager
def guided(
    pipeline: Any,
    guidance: Guidance,
    eta: float | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    recorders: Sequence[Recorder] = (),
) -> Iterator[PipelineGuidance]:
    """Guide the images of a pipeline away from their ``negative_prompt``; a context manager.

    Call the pipeline as usual. Its ``guidance_scale`` or ``true_cfg_scale`` must be above 1, so that it evaluates its
    negative prompt, but has no other effect: ``PositiveAndNegative`` adds classifier-free guidance.

    Args:
        pipeline: a pipeline of ``layouts.LAYOUTS`` with a scheduler of ``scheduler_kinds.KINDS``; a ``DDIMScheduler``
            is exact if the number of steps divides the number of its timesteps.
        guidance: guidance method.
        eta: ``eta`` of the pipeline's call, for a ``DDIMScheduler``; see ``PipelineGuidance``.
        negative_prompt: one or several negative prompts for all images; the pipeline is then called without a negative
            prompt. None for the negative prompts of the pipeline's call.
        recorders: called at each step except the last one.

    Yields:
        The guidance in the pipeline; its ``trajectories`` hold the scale and the posterior along the chain.

    Raises:
        SettingError: the pipeline, scheduler or guidance is not supported, or the negative prompt is missing.
    """
    kind = type(pipeline).__name__
    if kind not in LAYOUTS:
        raise SettingError(f"guided needs a {' or a '.join(LAYOUTS)}; got a {kind}")
    layout, (_, negatives) = LAYOUTS[kind], texts_of("", negative_prompt)
    needs, name = guidance.needs(), display_name(guidance)
    if needs.attention is not None:
        if layout.place is None:
            those = " or a ".join(own for own in LAYOUTS if LAYOUTS[own].place)
            raise SettingError(
                f"{name} acts inside the attention, which goes with a {those}: with a {kind}, take "
                "DynamicNegativeGuidance or NegativePrompting"
            )
        if not negatives:
            raise SettingError(f"{name} reads its negative prompts itself: guided(..., negative_prompt=...)")
    if needs.negatives and not negatives and "negative_prompt" not in inspect.signature(pipeline.__call__).parameters:
        raise SettingError(f"a {kind} is called without negative prompts: guided(..., negative_prompt=...)")
    hosted = PipelineGuidance(pipeline, guidance, eta, len(negatives) or 1, recorders)
    texts = PipelineTexts(pipeline, layout, guidance, negatives)
    networks = [getattr(pipeline, name) for name in layout.networks if getattr(pipeline, name, None) is not None]
    forwards = [GuidedForward(pipeline, layout, hosted, texts, network) for network in networks]
    free = pipeline.maybe_free_model_hooks

    def free_hooks() -> None:
        """Between the networks' own forwards: it sets new hooks there."""
        for forward in forwards:
            forward.remove()
        free()
        for forward in forwards:
            forward.install()

    with ExitStack() as stack:
        stack.enter_context(replaced(pipeline, "encode_prompt", texts.encode_prompt))
        for forward in forwards:
            stack.enter_context(forward)
        stack.enter_context(replaced(pipeline, "maybe_free_model_hooks", free_hooks))
        yield hosted
        for forward in forwards:
            forward.check_finished()
