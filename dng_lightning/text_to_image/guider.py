"""Any guidance as a guider of a modular diffusers pipeline.

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

No other file imports this one, because it needs diffusers at import.
"""

import json
from typing import Any

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name, settings_json
from dng_lightning.interfaces import Needs
from dng_lightning.parametrization import denoised_of
from dng_lightning.sampling.predictors import ClassConditionalPredictor
from dng_lightning.text_to_image.attention import replaced
from dng_lightning.text_to_image.prompts import check_negatives
from dng_lightning.text_to_image.scheduler_bridge import PipelineGuidance

try:
    import transformers  # noqa: F401  # what diffusers' text encoders are
    from diffusers import ClassifierFreeGuidance
    from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
    from diffusers.modular_pipelines.modular_pipeline import BlockState, PipelineState
except ImportError as error:
    raise SettingError("a guider needs an extra: pip install 'dng-lightning[text-to-image]'") from error

TOKENS, POOLED = "prompt_embeds", "pooled_prompt_embeds"
TEXTS: dict[str, dict[str, str]] = {
    "StableDiffusionXLModularPipeline": {TOKENS: TOKENS, "text_embeds": POOLED},
    "StableDiffusion3ModularPipeline": {"encoder_hidden_states": TOKENS, "text_embeds": POOLED},
    "QwenImageModularPipeline": {
        "encoder_hidden_states": TOKENS,
        "encoder_hidden_states_mask": "prompt_embeds_mask",
    },
    "ZImageModularPipeline": {"cap_feats": TOKENS},
    "WanModularPipeline": {"encoder_hidden_states": TOKENS},
}
"""Class of a modular pipeline -> the inputs of its network with the text, tokens first, and the results of its text
encoder that they are."""


class Guider(BaseGuidance):
    """Guides a modular pipeline away from the ``negative_prompt`` of its call.

    Each step evaluates the network for the prompt, for the negative prompt, and, if the guidance needs it
    (``PositiveAndNegative``), for the empty prompt, one after the other. The empty prompt is encoded with the
    pipeline's defaults.

    Args:
        guidance: guidance method.
        pipeline: a pipeline of ``TEXTS`` with its components; for its scheduler see ``guided``.
        eta: ``eta`` of the pipeline's call, for a ``DDIMScheduler``; see ``PipelineGuidance``.

    Attributes:
        hosted: the guidance in the pipeline; its ``trajectories`` hold the scale and the posterior along the chain.

    Raises:
        SettingError: the pipeline, scheduler or guidance is not supported.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_null"]  # type: ignore[assignment]  # noqa: RUF012  # theirs

    def __init__(self, guidance: Guidance, pipeline: Any, eta: float | None = None) -> None:
        super().__init__()
        kind = type(pipeline).__name__
        if kind not in TEXTS:
            raise SettingError(f"a Guider needs a {' or a '.join(TEXTS)}; got a {kind}")
        if (encoder := pipeline.blocks.sub_blocks.get("text_encoder")) is None:
            raise SettingError("a Guider encodes the empty prompt: make the pipeline with its text_encoder block")
        parts = {"text_encoder", "text_encoder_2", "unet", "transformer", "scheduler"} & set(pipeline.component_names)
        if not all(getattr(pipeline, part) for part in parts):
            raise SettingError("the pipeline lacks components: call pipeline.load_components() first")
        if guidance.needs().attention is not None:
            raise SettingError(f"{display_name(guidance)} acts inside the attention: use guided with a stock pipeline")
        self.hosted = PipelineGuidance(pipeline, guidance, eta)
        config = {"guidance": json.loads(settings_json(guidance)), "eta": eta}  # informative only
        self.register_to_config(**config)  # type: ignore[no-untyped-call]
        # The empty prompt, and that of a pipeline that is called without a negative prompt
        state = PipelineState()
        state.set("prompt", "")
        own: Any = ClassifierFreeGuidance
        with torch.no_grad(), replaced(pipeline, "guider", own()):
            encoder(pipeline, state)
        encoded = {name: [state.get(result), state.get(f"negative_{result}")] for name, result in TEXTS[kind].items()}
        self.null = {name: empty if null is None else null for name, (empty, null) in encoded.items()}
        self.text = next(iter(encoded))
        self.empties = [text for text in encoded[self.text] if text is not None]

    @property
    def needs(self) -> Needs:
        """What the guidance needs; nothing while the pipeline disables its guider."""
        return self.hosted.guidance.needs() if self._enabled else Needs()

    @property
    def num_conditions(self) -> int:
        """Number of evaluations of the network a step."""
        return 1 + self.needs.negatives + self.needs.null

    @property
    def is_conditional(self) -> bool:
        """Whether the current evaluation is for the prompt."""
        return self._count_prepared == 1

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """See ``BaseGuidance.set_state``; the first step begins a chain."""
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self.hosted.restart()

    def prepare_inputs(self, data: Any) -> list[BlockState]:
        """The network's inputs for each evaluation, from the pairs for the prompt and the negative prompt.

        Raises:
            SettingError: the negative prompt is missing, or the guidance does not use it.
        """
        needs, texts = self.needs, data[self.text]
        prompts, negatives = texts if isinstance(texts, tuple) else (texts, None)
        batches = [self._prepare_batch(data, 0, "pred_cond")]
        if self._enabled:
            check_negatives(self.hosted.guidance, negatives, self.empties)
        if needs.negatives:
            batches.append(self._prepare_batch(data, 1, "pred_uncond"))
        if needs.null:
            nulls = {name: (_repeated(text, len(prompts)),) * 2 for name, text in self.null.items()}
            batches.append(self._prepare_batch(data | nulls, 1, "pred_null"))
        return batches

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[BlockState]:
        """See ``prepare_inputs``; ``input_fields`` are the names of the inputs in ``data``."""
        pairs = {
            name: getattr(data, field) if isinstance(field, str) else tuple(getattr(data, each, None) for each in field)
            for name, field in input_fields.items()
        }
        return self.prepare_inputs(pairs)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Add a hook that records the network's latents."""
        super().prepare_models(denoiser)
        self._hook = denoiser.register_forward_pre_hook(self._look, with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Remove the hook."""
        self._hook.remove()

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_null: Tensor | None = None
    ) -> GuiderOutput:
        """The guided output for the scheduler, from the network's outputs (B, ...).

        Raises:
            SettingError: the network reads more than the latents.
        """
        if not self._enabled:
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=pred_uncond)
        if self._x_t.numel() != pred_cond.numel():
            raise SettingError("a Guider does not support image prompts and masks: call the pipeline without them")
        x_t, hosted, count = self._x_t.float().view_as(pred_cond), self.hosted, len(pred_cond)
        level = hosted.level(self._timestep)
        outputs = [pred.float() for pred in (pred_cond, pred_uncond, pred_null) if pred is not None]
        made = torch.cat([denoised_of(pred, x_t, level.alpha, level.sigma, hosted.prediction) for pred in outputs])
        # the predictions are ready, so a class label is a row of ``made``
        rows = torch.arange(count, device=x_t.device)
        predictor = ClassConditionalPredictor(
            lambda x_t, level, rows: made[rows], rows + len(made) - count, [rows + count], rows
        )
        pred = hosted.guide(predictor, x_t, self._timestep).to(pred_cond.dtype)
        return GuiderOutput(
            pred=pred, pred_cond=pred, pred_uncond=pred_uncond
        )  # Qwen-Image takes the norm of pred_cond

    def _look(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        self._x_t: Tensor = torch.stack(latents) if isinstance(latents, list) else latents


def _repeated(text: Any, count: int) -> Any:
    """A text, a tensor (1, ...) or a list of one, for ``count`` images."""
    return text * count if isinstance(text, list) else text.expand(count, *text.shape[1:])
