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

A pipeline blends two predictions of its network, uncond + w (cond - uncond). Where both are the guided prediction, the
blend is too, whatever w, and whatever the pipeline rescales by the norm of one of them: the network's forward is
replaced by one that returns the guided prediction twice (``guided_forward.py``).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
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
    """Have a pipeline draw its images with a guidance, each away from its ``negative_prompt``; a context manager.

    The pipeline is called as usual. What makes it evaluate its negative prompt must be set, ``guidance_scale`` or
    ``true_cfg_scale`` above 1, else it reads none; that has no other effect, as classifier-free guidance is a guidance
    too (``PositiveAndNegative`` has it on both sides).

    Args:
        pipeline: of a class in ``layouts.LAYOUTS``, with a scheduler of ``scheduler_kinds.KINDS``; a ``DDIMScheduler``
            is exact where the steps divide its timesteps.
        guidance: the method.
        eta: what the pipeline is called with, for a ``DDIMScheduler``; see ``PipelineGuidance``.
        negative_prompt: what all images avoid, one or several, encoded here; the pipeline is then called without a
            negative prompt, and need not evaluate any. None for the negative prompts that the pipeline is called with.
        recorders: called at each step but the last, which no call of the network follows.

    Yields:
        the guidance; its ``trajectories`` are the scale and the posterior along the chain.

    Raises:
        SettingError: this pipeline, scheduler or guidance cannot be used, or it is called without a negative prompt.
    """
    kind = type(pipeline).__name__
    if kind not in LAYOUTS:
        raise SettingError(f"guided goes with a {' or a '.join(LAYOUTS)}; got a {kind}")
    layout, (_, negatives) = LAYOUTS[kind], texts_of("", negative_prompt)
    if guidance.needs().attention is not None:
        name, those = display_name(guidance), [own for own in LAYOUTS if LAYOUTS[own].tokens is not None]
        if layout.tokens is None:
            raise SettingError(f"{name} acts inside the attention, which goes with a {' or a '.join(those)}")
        if not negatives:
            raise SettingError(f"{name} reads its negative prompts itself: guided(..., negative_prompt=...)")
    hosted = PipelineGuidance(pipeline, guidance, eta, len(negatives) or 1, recorders)
    texts = PipelineTexts(pipeline, layout, guidance, negatives)
    networks = [getattr(pipeline, name) for name in layout.networks if getattr(pipeline, name, None) is not None]
    forwards = [GuidedForward(pipeline, layout, hosted, texts, network) for network in networks]
    with ExitStack() as stack:
        stack.enter_context(replaced(pipeline, "encode_prompt", texts.noted))
        for forward in forwards:
            stack.enter_context(forward)
        stack.enter_context(replaced(pipeline, "maybe_free_model_hooks", offloaded(pipeline, forwards)))
        yield hosted
        for forward in forwards:
            forward.check_finished()


def offloaded(pipeline: Any, forwards: Sequence[GuidedForward]) -> Any:
    """The pipeline's end of a call, which sets up the moving of weights anew, around the networks' own forwards."""
    free = pipeline.maybe_free_model_hooks

    @wraps(free)
    def around() -> None:
        for forward in forwards:
            forward.remove()
        free()
        for forward in forwards:
            forward.install()

    return around
