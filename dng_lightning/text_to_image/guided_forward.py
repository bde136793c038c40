"""Replaces the forward of a pipeline's network by one that returns the guided prediction."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import denoised_of
from dng_lightning.text_to_image.attention import ForbiddenTexts, replaced
from dng_lightning.text_to_image.layouts import Layout, Texts, refusal
from dng_lightning.text_to_image.network_call import NetworkCall
from dng_lightning.text_to_image.predictor import AttentionPredictor
from dng_lightning.text_to_image.prompts import check_negatives
from dng_lightning.text_to_image.scheduler_bridge import PipelineGuidance


class PipelineTexts:
    """The empty prompt and the negative prompts of all images, encoded with the settings of the pipeline's call.

    Args:
        pipeline: a pipeline of diffusers.
        layout: layout of the pipeline.
        guidance: guidance method.
        negatives: negative prompts of all images; empty for those of the pipeline's call.

    Raises:
        SettingError: there is a text to encode, and the pipeline has no text encoder.
    """

    def __init__(self, pipeline: Any, layout: Layout, guidance: Guidance, negatives: Sequence[str]) -> None:
        self.pipeline, self.layout, self.texts = pipeline, layout, list(negatives)
        self.encoder: Callable[..., Any] = pipeline.encode_prompt
        self.settings: dict[str, Any] = {}
        self._encoded: tuple[list[Texts], list[Texts]] | None = None
        self.readable = getattr(pipeline, "text_encoder", None) is not None
        if not self.readable and (negatives or guidance.needs().null):
            what = "the negative prompt" if negatives else "the empty prompt"
            raise SettingError(
                f"{display_name(guidance)} reads {what}: give the pipeline its text_encoder (it may be freed later)"
            )

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's ``encode_prompt``; also records the settings of the call."""
        self.settings, self._encoded = inspect.signature(self.encoder).bind(*args, **kwargs).arguments, None
        return self.encoder(*args, **kwargs)

    @property
    def branches(self) -> int:
        """Predictions per image in one network call of a pipeline that calls its network once per step."""
        both = getattr(self.pipeline, "do_classifier_free_guidance", None)
        return 2 if (self.settings.get("do_classifier_free_guidance") if both is None else both) else 1

    @property
    def encoded(self) -> tuple[list[Texts], list[Texts]]:
        """The texts that count as no negative prompt, see ``Layout.empties``, and the negative prompts of all images.

        They are encoded once for each call of the pipeline; both are empty without a text encoder.
        """
        if self._encoded is None and self.readable:
            encode = partial(self.layout.encode, self.pipeline, self.encoder, settings=self.settings)
            self._encoded = self.layout.empties(self.pipeline, encode("")), [encode(text) for text in self.texts]
        return self._encoded or ([], [])


class GuidedForward:
    """A forward that returns the guided prediction as each of the network's outputs; a context manager.

    If the pipeline calls its network for the prompts and then for the negative prompts, the guided prediction needs
    both calls: the first one returns a tensor that the second one fills before the pipeline combines the two.

    Args:
        pipeline: of diffusers.
        layout: of the pipeline.
        hosted: the guidance.
        texts: what is encoded for all images.
        network: one of the pipeline's networks.
    """

    def __init__(
        self, pipeline: Any, layout: Layout, hosted: PipelineGuidance, texts: PipelineTexts, network: Any
    ) -> None:
        self.pipeline, self.layout, self.hosted, self.texts, self.module = pipeline, layout, hosted, texts, network
        self.signature = inspect.signature(type(getattr(network, "_orig_mod", network)).forward)
        self.guidance, self.name = hosted.guidance, display_name(hosted.guidance)
        self.first: tuple[NetworkCall, Tensor] | None = None
        self.unfilled = False

    # --- in the pipeline ---

    def __enter__(self) -> "GuidedForward":
        self.install()
        self.watch = self.module.register_forward_pre_hook(self._check_installed)
        return self

    def __exit__(self, *error: object) -> None:
        self.watch.remove()
        self.remove()

    def install(self) -> None:
        """Replace the network's forward."""
        self.network, self.forward = self.module.forward, replaced(self.module, "forward", self)
        self.forward.__enter__()

    def remove(self) -> None:
        """Restore the network's forward."""
        self.forward.__exit__(None, None, None)

    def _check_installed(self, *call: Any) -> None:
        if self.module.forward is not self:
            raise SettingError(
                "another library replaced the network's forward: call the pipeline in a new guided context"
            )

    def check_finished(self) -> None:
        """Check that the last network call for the prompts was followed by one for the negative prompts.

        Raises:
            SettingError: the guidance needs a negative prompt, and the pipeline evaluated none.
        """
        if self.unfilled:
            raise SettingError(f"{self.name} needs a negative prompt: call the pipeline with a {self.layout.switch}")

    # --- in a call ---

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any]:
        """See the network's ``forward``.

        Raises:
            SettingError: the negative prompt is missing, or the call is not supported.
        """
        arguments = self.signature.bind(None, *args, **kwargs).arguments
        arguments = {name: value for name, value in arguments.items() if name not in ("self", "return_dict")}
        call = NetworkCall.of(self.layout, arguments)
        if line := refusal(self.pipeline, call.arguments):
            raise SettingError(line)
        self._check_distilled(call)
        return (self._together(call) if self.layout.together else self._one_by_one(call),)

    def _together(self, call: NetworkCall) -> Any:
        """The outputs for the negative prompts and the prompts, or for the prompts alone."""
        if self.texts.branches == 1:
            return self._output(call, self._guided(call, None))
        halves = [call.take(rows) for rows in torch.arange(len(call.latents)).chunk(2)]
        negatives, prompts = halves if self.layout.negatives_first else halves[::-1]
        guided = self._guided(prompts, negatives)
        return self._output(call, torch.cat([guided, guided]))

    def _one_by_one(self, call: NetworkCall) -> Tensor:
        """The output for the prompts, or for the negative prompts."""
        if self.first is not None and self.first[0].latents is call.latents:
            (prompts, output), self.first = self.first, None
            if self.unfilled:
                output.copy_(self._output(call, self._guided(prompts, call)))
            else:
                self._check_negatives(call)
            self.unfilled = False
            return output.clone()
        self.check_finished()
        self.unfilled = self.guidance.needs().negatives and not self.texts.texts
        output = torch.zeros_like(call.x_t) if self.unfilled else self._output(call, self._guided(call, None))
        self.first = call, output
        return output

    def _guided(self, prompts: NetworkCall, negatives: NetworkCall | None) -> Tensor:
        """The guided output, (B, ...) fp32."""
        (empties, own_negatives), needs = self.texts.encoded, self.guidance.needs()
        if negatives is None and needs.negatives and not self.texts.texts:
            raise SettingError(f"{self.name} needs a negative prompt: call the pipeline with a {self.layout.switch}")
        self._check_negatives(negatives)
        away = [prompts.with_text(text) for text in own_negatives] or [negatives or prompts]
        calls = [prompts, *away, *(prompts.with_text(text) for text in empties[:1])]
        x_t = prompts.x_t
        rows, outputs = torch.arange(len(x_t), device=x_t.device), list[Tensor]()

        def denoiser(x_t: Tensor, level: NoiseLevel, labels: Tensor | None) -> Tensor:
            """A label encodes a text and an image: text * B + image."""
            assert labels is not None
            which, counts = torch.unique_consecutive(labels // len(rows), return_counts=True)
            images, latents = (torch.split(part, counts.tolist()) for part in (labels % len(rows), x_t))
            of_texts = [calls[number] for number in which.tolist()]
            parts = [call.take(i).with_latents(x) for call, i, x in zip(of_texts, images, latents, strict=True)]
            output = self.layout.sign * self._evaluate(parts, predictor).float()
            outputs.append(output)
            return denoised_of(output, x_t, level.alpha, level.sigma, self.hosted.prediction)

        null = rows + (len(calls) - 1) * len(rows)
        forbidden = [rows + (1 + k) * len(rows) for k in range(len(away))]
        texts = ForbiddenTexts((), ())
        if needs.attention:
            texts = self.layout.forbidden(self.pipeline, self.texts.texts, own_negatives)
        predictor = AttentionPredictor(denoiser, null, forbidden, rows, self.module, texts)
        timestep = prompts.arguments[self.layout.rows[1]] / self.module.config.get("timestep_scale", 1.0)
        guided = self.hosted.guide(predictor, x_t, timestep)
        # the base images come first; without a push this equals the network's own output, bit for bit
        return self.layout.sign * (outputs[0][: len(rows)] + (guided - self.hosted.plain))

    def _evaluate(self, calls: Sequence[NetworkCall], predictor: AttentionPredictor) -> Tensor:
        """The network's outputs without the channels of a learned variance, which pipelines discard."""
        if all(calls[0].fits(call) for call in calls):
            calls = [calls[0].joined(calls[1:])]
        outputs = []
        for number, call in enumerate(calls):
            edits = number == 0 and predictor.is_edited  # the base images are in the first call
            with predictor.editing(call.text.shape[1]) if edits else nullcontext():
                call = call.with_forbidden(predictor.texts) if edits else call
                (output,) = self.network(**call.inputs, return_dict=False)
            output = torch.stack(output) if isinstance(output, list) else output
            self.width = output.shape[1]
            outputs.append(output[:, : call.x_t.shape[1]])
        return torch.cat(outputs)

    def _output(self, call: NetworkCall, guided: Tensor) -> Any:
        """The guided output in the format of the network's output."""
        guided = guided.to(call.x_t.dtype)
        more = guided.new_zeros(len(guided), self.width - guided.shape[1], *guided.shape[2:])
        output = torch.cat([guided, more], 1)
        return list(output) if isinstance(call.latents, list) else output

    def _check_negatives(self, negatives: NetworkCall | None) -> None:
        empties = [text[self.layout.text] for text in self.texts.encoded[0]]
        check_negatives(self.guidance, None if negatives is None else negatives.text, empties, bool(self.texts.texts))

    def _check_distilled(self, call: NetworkCall) -> None:
        needs, scale = self.guidance.needs(), call.arguments.get("guidance")
        if (needs.negatives or needs.null) and scale is not None and not bool((scale == 1).all()):
            raise SettingError(
                f"{self.name} needs conditional scores, which a guidance-distilled model has at guidance_scale 1 only: "
                "call the pipeline with guidance_scale=1, or take a guidance inside the attention (ValueSignFlip)"
            )
