"""Negatives inside the attention of each family of networks: against a network that is evaluated for two texts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AttentionSubtraction,
    ClassifierFreeGuidance,
    Guidance,
    NormalizedAttention,
    OrthogonalAttention,
    PositiveAndNegative,
    Unguided,
    ValueSignFlip,
)
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.text_to_image import guided

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

from family_samples import NEGATIVES, ON, PROMPTS, assert_same, drawn
from tiny_pipelines import FAMILIES
from tiny_transformers import flux

PLACES = {
    "StableDiffusion3Pipeline": "after", "PixArtAlphaPipeline": "apart", "PixArtSigmaPipeline": "apart",
    "SanaPipeline": "apart",
    "FluxPipeline": "before", "WanPipeline": "apart",
}  # fmt: skip
METHODS: dict[str, Callable[[Guidance], AttentionGuidance]] = {
    "NAG": lambda other: NormalizedAttention(other, 9.0, 1.5, 0.7),
    "ONG": lambda other: OrthogonalAttention(other, 2.0),
    "NASA": lambda other: AttentionSubtraction(other, 0.4),
    "VSF": lambda other: ValueSignFlip(other, 2.0, -0.3),
}
IDLE = [
    NormalizedAttention(Unguided(), 1.0), NormalizedAttention(Unguided(), alpha=0.0),
    OrthogonalAttention(Unguided(), 0.0), AttentionSubtraction(Unguided(), 0.0), ValueSignFlip(Unguided(), 0.0),
]  # fmt: skip


def softmax(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores if bias is None else scores + bias


def merged(z: Tensor) -> Tensor:
    return z.transpose(-3, -2).flatten(-2)


class TwoTexts(TorchFunctionMode):
    """A network that is called for an image with its text, and again with the forbidden one: they share the image.

    Args:
        method: by which the image attends.
        place: of the text in an attention.
        length: of a text.
        padding: of the forbidden text, (length,).
    """

    def __init__(self, method: AttentionGuidance, place: str, length: int, padding: Tensor) -> None:
        super().__init__()
        self.method, self.place, self.length, self.padding, self.calls = method, place, length, padding, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        q, k, v, mask = (given.get(name) for name in ("query", "key", "value", "attn_mask"))
        plain = func(*args, **kwargs)
        if self.place == "apart" and k.shape[2] != self.length:
            return plain
        self.calls += 1
        image = slice(None) if self.place == "apart" else slice(self.length, None)
        image = slice(0, k.shape[2] - self.length) if self.place == "after" else image
        text = slice(0, self.length) if self.place != "after" else slice(k.shape[2] - self.length, None)
        z = self.push(q[:, :, image], k, v, mask, merged(plain[:, :, image]), text)
        plain[:, :, image] = z.unflatten(-1, (q.shape[1], -1)).transpose(0, 1)
        return plain

    def push(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, z: Tensor, text: slice) -> Tensor:
        """The pushed output of the image, (tokens, width)."""
        plus, minus = z
        if isinstance(self.method, ValueSignFlip):
            bias = torch.full((self.length,), self.method.bias).masked_fill(self.padding, -torch.inf)
            bias = bias if mask is None else bias + mask[1, ..., text]
            first = softmax(q[:1], k[:1], None if mask is None else mask[:1])
            second = softmax(q[:1], k[1:, :, text], bias)
            weights = torch.cat([first, second], -1).softmax(-1)
            return merged(weights @ torch.cat([v[:1], -self.method.scale * v[1:, :, text]], 2))[0]
        if isinstance(self.method, AttentionSubtraction):
            return plus - self.method.scale * minus
        if isinstance(self.method, OrthogonalAttention):
            along = (minus * plus).sum(-1, keepdim=True) / plus.square().sum(-1, keepdim=True) * plus
            return plus - self.method.scale * (minus - along)
        assert isinstance(self.method, NormalizedAttention)
        pushed = self.method.scale * plus - (self.method.scale - 1) * minus
        ratio = pushed.norm(1, -1, keepdim=True) / plus.norm(1, -1, keepdim=True)
        capped = pushed * ratio.clamp(max=self.method.tau) / ratio
        return self.method.alpha * capped + (1 - self.method.alpha) * plus


def texts_of(name: str, pipeline: Any) -> tuple[Any, Any, Tensor]:
    """The first prompt and the first negative prompt, with the prompt's pooled text; and the padding of the latter."""
    texts = FAMILIES[name].texts(pipeline, PROMPTS, NEGATIVES)
    own, other = ([part[:1] for part in texts[key]] for key in ("prompt", "negative"))
    length, letters = own[0].shape[1], len(NEGATIVES[0])
    if PLACES[name] != "apart":
        other[1] = own[1]
    padding = torch.arange(length) > letters  # letters, and an end
    if name == "StableDiffusion3Pipeline":  # of CLIP, with a start; and nothing of T5
        clip = pipeline.tokenizer.model_max_length
        padding = torch.cat([torch.arange(clip) > letters + 1, torch.ones(length - clip, dtype=torch.bool)])
    if name in ("PixArtSigmaPipeline", "SanaPipeline"):  # their masks say so
        padding = torch.zeros(length, dtype=torch.bool)
    return own, other, padding


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PLACES)
def test_it_is_a_network_evaluated_for_both_texts(name: str, method: str, opened: Any, monkeypatch: pytest.MonkeyPatch):
    pipeline, family = opened[name], FAMILIES[name]
    guidance, outputs = METHODS[method](Unguided()), []
    own, other, padding = texts_of(name, pipeline)
    together = [torch.cat(rows) for rows in zip(own, other, strict=True)]

    def noted(model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs.append((sample.clone(), timestep, model_output))
        return step(model_output, timestep, sample, *args, **kwargs)

    step = pipeline.scheduler.step
    monkeypatch.setattr(pipeline.scheduler, "step", noted)
    with guided(pipeline, guidance, negative_prompt=NEGATIVES[0]):
        drawn(pipeline, family, family.off, negative_prompt=None)
    with torch.no_grad():
        plain, compared = [], 0
        for x, timestep, found in outputs:
            t = torch.as_tensor([float(timestep)])
            mode = TwoTexts(guidance, PLACES[name], own[0].shape[1], padding)
            with mode:
                expected = family.run(pipeline, x[:1].repeat(2, *[1] * (x.ndim - 1)), t.repeat(2), together)[:1]
            assert mode.calls >= 2
            plain.append(family.run(pipeline, x[:1], t, own))
            compared += float((expected - plain[-1]).abs().max() / plain[-1].abs().max()) > 1e-3
            assert_same(found[:1], expected, 1e-4)
    assert compared == len(outputs)  # it does something


@pytest.mark.parametrize("name", PLACES)
def test_at_the_identity_scale_it_is_the_pipeline_bit_for_bit(name: str, opened: Any):
    pipeline, family = opened[name], FAMILIES[name]
    expected = drawn(pipeline, family, family.off, negative_prompt=None)
    for idle in IDLE:
        with guided(pipeline, idle, negative_prompt=NEGATIVES):
            assert torch.equal(drawn(pipeline, family, family.off, negative_prompt=None), expected)
    assert not any("forward" in vars(part) for part in pipeline.transformer.modules())


@pytest.mark.parametrize("name", PLACES)
def test_classifier_free_guidance_goes_on_top(name: str, opened: Any):
    """The empty prompt is evaluated without the forbidden texts, in the same call or in another one."""
    pipeline, family = opened[name], FAMILIES[name]
    for method in METHODS.values():
        with guided(pipeline, method(ClassifierFreeGuidance(3.0)), negative_prompt=NEGATIVES):
            found = drawn(pipeline, family, family.off, negative_prompt=None)
        with guided(pipeline, PositiveAndNegative(method(Unguided()), 3.0), negative_prompt=NEGATIVES):
            assert_same(drawn(pipeline, family, family.off, negative_prompt=None), found)
        assert found.isfinite().all()


@pytest.mark.parametrize("name", PLACES)
def test_what_the_pipeline_evaluates_besides_makes_no_difference(name: str, opened: Any):
    pipeline, family = opened[name], FAMILIES[name]
    with guided(pipeline, METHODS["VSF"](Unguided()), negative_prompt=NEGATIVES):
        expected = drawn(pipeline, family, family.off, negative_prompt=None)
        assert_same(drawn(pipeline, family, ON, negative_prompt=None), expected, 1e-5)


def test_a_model_distilled_for_guidance():
    """Its predictions are no conditional scores, and none are compared."""
    torch.manual_seed(0)
    pipeline, family = flux(distilled=True), FAMILIES["FluxPipeline"]
    pipeline.set_progress_bar_config(disable=True)
    settings = {"negative_prompt": None, "guidance_scale": 3.5}
    plain = drawn(pipeline, family, family.off, **settings)
    for method in METHODS.values():
        with guided(pipeline, method(Unguided()), negative_prompt=NEGATIVES):
            assert (drawn(pipeline, family, family.off, **settings) - plain).abs().max() > 1e-3


def test_another_attention_backend(opened: Any, monkeypatch: pytest.MonkeyPatch):
    from diffusers.models.transformers import transformer_flux

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", lambda query, *rest, **settings: query)
    pipeline, family = opened["FluxPipeline"], FAMILIES["FluxPipeline"]
    line = r"torch's own backend alone: set_attention_backend\('native'\)"
    with guided(pipeline, METHODS["NAG"](Unguided()), negative_prompt="blue"), pytest.raises(SettingError, match=line):
        drawn(pipeline, family, family.off, negative_prompt=None)


def test_who_cannot(opened: Any):
    pipeline, family = opened["QwenImagePipeline"], FAMILIES["QwenImagePipeline"]
    nag = METHODS["NAG"](Unguided())
    with pytest.raises(
        SettingError, match=r"NormalizedAttention.* acts inside the attention, which goes with a Stable"
    ):
        guided(pipeline, nag, negative_prompt="blue").__enter__()
    pipeline, family = opened["FluxPipeline"], FAMILIES["FluxPipeline"]
    with pytest.raises(SettingError, match=r"reads its negative prompts itself: guided\(\.\.\., negative_prompt="):
        guided(pipeline, nag).__enter__()
    with (
        guided(pipeline, nag, negative_prompt="blue"),
        pytest.raises(SettingError, match="guided has negative prompts"),
    ):
        drawn(pipeline, family, ON)
