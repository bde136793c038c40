"""Attention away from negative prompts: by hand in double precision, alone and in the whole U-Net."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import tiny
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    ClassifierFreeGuidance,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    NormalizedAttention,
    PositiveAndNegative,
    Unguided,
    ValueSignFlip,
)
from dng_lightning.interfaces import Needs
from dng_lightning.posterior import ObserverPosterior
from dng_lightning.sampling import ImageNoise, Sampler, WithObserver, sample
from dng_lightning.text_to_image import TextPredictor, TextToImageModel, TextToImageSampler
from dng_lightning.text_to_image.attention import ForbiddenTexts, edited_attention

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

from diffusers.models import attention_processor as processors

PROMPT, NEGATIVES = "a red seven", ["blue", "green"]
SEEDS = [3, 14, 15]
STRONG = NormalizedAttention(Unguided(), 9.0, 1.2, 0.7)


def sampler_of(folder: Path, guidance: Guidance, **settings: Any) -> TextToImageSampler:
    settings = {"negative_prompt": NEGATIVES, "steps": 4} | settings
    return TextToImageSampler(str(folder), PROMPT, guidance=guidance, **settings)


def drawn(folder: Path, guidance: Guidance, **settings: Any) -> Tensor:
    return sampler_of(folder, guidance, **settings).draw(SEEDS).images


def by_hand(attn: Any, image: Tensor, text: Tensor) -> Tensor:
    """What softmax(q k' / sqrt(d)) v gives, head by head, before the projection."""
    q, k, v = attn.to_q(image), attn.to_k(text), attn.to_v(text)
    heads = [
        (a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5).softmax(-1) @ c
        for a, b, c in zip(*(x.chunk(attn.heads, -1) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(heads, -1)


def pushed_by_hand(z: Tensor, others: list[Tensor], guidance: NormalizedAttention) -> tuple[Tensor, Tensor]:
    """Z_NAG in the paper's words, and the ratios."""
    order = int(guidance.norm[1])
    extrapolated = z - (guidance.scale - 1) * sum(other - z for other in others)
    ratio = extrapolated.norm(order, -1, keepdim=True) / z.norm(order, -1, keepdim=True)
    capped = extrapolated * ratio.clamp(max=guidance.tau) / ratio
    return guidance.alpha * capped + (1 - guidance.alpha) * z, ratio


# --- one attention ---


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(
    "inner",
    [processors.AttnProcessor2_0(), processors.AttnProcessor(), processors.SlicedAttnProcessor(1)],
    ids=["fused", "plain", "sliced"],
)
def test_it_is_the_formula_on_the_outputs_before_the_projection(inner: Any, norm: Any):
    torch.manual_seed(0)
    attn = processors.Attention(12, 10, heads=3, dim_head=4).double().requires_grad_(False)
    images, texts, negatives = torch.randn(5, 7, 12), torch.randn(5, 6, 10), torch.randn(2, 6, 10)
    images, texts, negatives = images.double(), texts.double(), negatives.double()
    guidance = NormalizedAttention(Unguided(), 3.0, 4.0, 0.6, norm)
    active = torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()  # 3 and 4 are no base
    forbidden = ForbiddenTexts(list(negatives), [None, None])
    attn.set_processor(inner)
    with edited_attention(attn, guidance.edit, 3, 6, forbidden, active):
        found = attn(images, encoder_hidden_states=forbidden.append(texts))
    ratios = []
    for i, told in enumerate([[0], [], [0, 1], [], []]):
        z = by_hand(attn, images[i], texts[i])
        others = [by_hand(attn, images[i], negatives[k]) for k in told]
        expected, ratio = pushed_by_hand(z, others, guidance) if others else (z, torch.ones(1))
        ratios.append(ratio.flatten())
        torch.testing.assert_close(found[i], attn.to_out[0](expected), rtol=0, atol=1e-12)
    assert ratios[0].min() < 4.0 < ratios[0].max()  # tau is reached, and it is not
    torch.testing.assert_close(found[3:], attn(images, encoder_hidden_states=texts)[3:], rtol=0, atol=1e-12)


def test_attention_to_the_image_itself_is_as_it_was():
    attn = processors.Attention(12, heads=3, dim_head=4)
    images = torch.randn(2, 7, 12)
    expected = attn(images)
    with edited_attention(attn, STRONG.edit, 2, 6, ForbiddenTexts([torch.randn(6, 12)], [None])):
        assert torch.equal(attn(images), expected)


# --- the whole network ---


@contextmanager
def all_by_hand(unet: Any, guidance: NormalizedAttention, negatives: Tensor, images: int) -> Iterator[list[Tensor]]:
    """The U-Net's attentions to a text replaced by what they should give; the ratios that there were."""
    ratios: list[Tensor] = []

    def replaced(attn: Any) -> Any:
        def forward(hidden: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None) -> Tensor:
            z = by_hand(attn, hidden, encoder_hidden_states)
            others = [by_hand(attn, hidden, text.expand(len(hidden), -1, -1)) for text in negatives]
            pushed, ratio = pushed_by_hand(z, others, guidance)
            ratios.append(ratio[:images].flatten())
            projected: Tensor = attn.to_out[0](torch.cat([pushed[:images], z[images:]]))
            return projected

        return forward

    crossed = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    assert crossed
    for attn in crossed:
        attn.forward = replaced(attn)
    yield ratios
    for attn in crossed:
        del attn.forward


@pytest.mark.parametrize("xl", [False, True], ids=["stable", "xl"])
@pytest.mark.parametrize(("norm", "tau"), [("l1", 1.2), ("l1", 100.0), ("l2", 1.2)])
def test_the_base_prediction_is_that_of_the_network_with_each_attention_by_hand(
    xl: bool, norm: Any, tau: float, tmp_path: Path
):
    model = TextToImageModel.load(str(tiny(tmp_path, xl=xl)))
    prompts = model.encode([PROMPT, "a one"], NEGATIVES)
    model.denoiser.double()
    guidance = NormalizedAttention(Unguided(), 9.0, tau, 0.7, norm)
    labels, level = torch.tensor([1, 0, 1]), model.schedule.level(600)
    predictor, x = TextPredictor(model, prompts, labels), torch.randn(3, *model.latent_shape())
    needs = Needs(negatives=True, null=True)
    found, plain = (predictor.predict(x, level, asked) for asked in (replace(needs, attention=guidance.edit), needs))
    with (
        torch.no_grad(),
        all_by_hand(model.denoiser, guidance, prompts.texts["encoder_hidden_states"][[2, 3]].double(), 3) as ratios,
    ):
        expected = model(x, level, prompts.take(labels))
    torch.testing.assert_close(found.denoised, expected, rtol=0, atol=1e-6)  # given in single precision
    assert (found.denoised - plain.denoised).abs().max() > 1e-3
    assert found.null is not None
    assert plain.null is not None
    for same, other in ((found.null, plain.null), (found.negatives, plain.negatives)):
        torch.testing.assert_close(same, other, rtol=0, atol=1e-6)  # they attend as ever
    assert (torch.cat(ratios) > tau).all() == (tau < 2)  # random texts are unlike, in all images alike
    assert predictor.nfe == 2 * 3 * 4


def test_without_a_push_it_is_the_plain_prediction_bit_for_bit(folder: Path):
    for plain in (Unguided(), ClassifierFreeGuidance(7.5), PositiveAndNegative(NegativePrompting(2.0), 3.0)):
        expected = drawn(folder, plain)
        for idle in ({"scale": 1.0}, {"alpha": 0.0}, {"end": 0.0}):
            assert torch.equal(drawn(folder, NormalizedAttention(plain, **idle)), expected)
    assert (drawn(folder, STRONG) - drawn(folder, Unguided())).abs().max() > 1e-3


def own_attributes(unet: Any) -> list[tuple[int, bool]]:
    """The processor of each attention, and whether its forward is another than its class's."""
    return [(id(part.processor), "forward" in vars(part)) for part in unet.modules() if hasattr(part, "processor")]


def test_it_is_gone_after_each_call_even_one_that_fails(model: TextToImageModel):
    predictor, x = TextPredictor(model, model.encode([PROMPT], NEGATIVES)), torch.randn(2, *model.latent_shape())
    level = model.schedule.level(600)
    before, plain = own_attributes(model.denoiser), predictor.predict(x, level)
    pushed = predictor.predict(x, level, STRONG.needs())
    assert not torch.equal(pushed.denoised, plain.denoised)
    with pytest.raises(RuntimeError):
        predictor.predict(torch.randn(2, 9, 8, 8), level, STRONG.needs())
    assert own_attributes(model.denoiser) == before
    assert torch.equal(predictor.predict(x, level).denoised, plain.denoised)
    assert torch.equal(predictor.predict(x, level).negatives, plain.negatives)


def test_texts_that_count_for_no_image_change_nothing(model: TextToImageModel):
    predictor, x = TextPredictor(model, model.encode([PROMPT], NEGATIVES)), torch.randn(2, *model.latent_shape())
    level, nobody = model.schedule.level(600), torch.zeros(2, 2, dtype=torch.bool)
    found = predictor.predict(x, level, replace(STRONG.needs(), active=nobody))
    assert torch.equal(found.denoised, predictor.predict(x, level, Needs()).denoised)


# --- with other guidances ---


def test_classifier_free_guidance_goes_on_top(folder: Path):
    expected = drawn(folder, NormalizedAttention(ClassifierFreeGuidance(7.5), 9.0, 1.2, 0.7))
    torch.testing.assert_close(drawn(folder, PositiveAndNegative(STRONG, 7.5)), expected, rtol=0, atol=1e-5)
    module = sampler_of(folder, STRONG)
    x, labels = torch.randn(2, *module.chain_shape), torch.zeros(2, dtype=torch.long)
    around, level = NormalizedAttention(ClassifierFreeGuidance(7.5), 9.0, 1.2, 0.7), module.schedule.level(600)
    given = module.predictor(around, labels).predict(x, level, around.needs())
    plain = module.predictor(around, labels).predict(x, level, Needs(null=True))
    assert given.null is not None
    torch.testing.assert_close(given.null, plain.null, rtol=0, atol=1e-6)
    assert module.draw(SEEDS, around).nfe == 2 * 4


def test_it_may_end_at_a_noise_level_and_classifier_free_guidance_go_on(folder: Path):
    def ending(low: float) -> Guidance:
        return PositiveAndNegative(LimitedInterval(STRONG, low), 7.5)

    expected = drawn(folder, ClassifierFreeGuidance(7.5))
    torch.testing.assert_close(drawn(folder, ending(1e9)), expected, rtol=0, atol=1e-5)
    always, early = drawn(folder, PositiveAndNegative(STRONG, 7.5)), drawn(folder, ending(4.0))
    assert torch.equal(drawn(folder, ending(0.0)), always)
    assert (early - always).abs().max() > 1e-4
    assert (early - expected).abs().max() > 1e-4


def test_with_no_prompt_the_unconditional_prediction_stays_plain(model: TextToImageModel):
    predictor, x = TextPredictor(model, model.encode([PROMPT], NEGATIVES)), torch.randn(2, *model.latent_shape())
    level = model.schedule.level(600)
    plain = predictor.predict(x, level)
    given = predictor.predict(x, level, Needs(null=True, attention=STRONG.edit))
    assert given.null is not None
    torch.testing.assert_close(given.null, plain.denoised, rtol=0, atol=1e-6)
    assert (given.denoised - plain.denoised).abs().max() > 1e-3


def test_what_an_observer_sees_emerging_is_all_that_is_avoided(model: TextToImageModel):
    prompts, guidance = model.encode([PROMPT], NEGATIVES), AdaptiveNegative(STRONG, ObserverPosterior(None, [0.25]))
    seen = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])

    def images(guidance: Guidance, negatives: list[int], seeds: list[int]) -> Tensor:
        own = TextPredictor(model, prompts, torch.zeros(len(seeds), dtype=torch.long))
        tokens = [own.texts.tokens[number] for number in negatives]
        own.texts, own.conditions = ForbiddenTexts(tokens, [None] * len(tokens)), len(negatives)
        noise = ImageNoise(seeds, model.latent_shape())
        return sample(WithObserver(own, lambda denoised: seen), guidance, model.schedule, noise, Sampler(4))

    found = images(guidance, [0, 1], SEEDS)
    assert torch.equal(found[1], images(Unguided(), [0, 1], SEEDS)[1])
    late = LateAttention(Unguided(), 9.0, 1.2, 0.7)
    for image, negatives in ((0, [0]), (2, [0, 1])):
        alone = images(late, negatives, SEEDS[image : image + 1])
        torch.testing.assert_close(found[image], alone[0], rtol=0, atol=1e-4)


class LateAttention(NormalizedAttention):
    """From step 2 on, the first after the look."""

    def acts(self, step: Any) -> bool:
        return step.index >= 2


def test_an_image_depends_on_its_seed_alone_and_less_memory_gives_the_same(folder: Path):
    around = NormalizedAttention(ClassifierFreeGuidance(3.0), 9.0, 1.2, 0.7)
    expected = drawn(folder, around)
    torch.testing.assert_close(drawn(folder, around, save_memory=True), expected, rtol=0, atol=1e-4)
    alone = torch.cat([sampler_of(folder, around).draw([seed]).images for seed in SEEDS])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [STRONG, ValueSignFlip(Unguided())], ids=["NAG", "VSF"])
def test_half_precision_attends_like_the_whole(guidance: Guidance, folder: Path):
    exact, rough = (sampler_of(folder, guidance, precision=precision) for precision in ("fp32", "bf16"))
    x = torch.randn(2, *exact.chain_shape)
    level = exact.schedule.level(500)
    near, far = (module.predictor(guidance).predict(x, level, guidance.needs()).denoised for module in (rough, exact))
    torch.testing.assert_close(near, far, rtol=0, atol=0.05)


def test_a_negative_prompt_is_asked_for(folder: Path):
    with pytest.raises(SettingError, match="avoids something: set negative_prompt, or guidance to null"):
        sampler_of(folder, STRONG, negative_prompt=None)
    with pytest.raises(SettingError, match=r"unguided is NormalizedAttention\(Unguided\), which avoids something"):
        sampler_of(folder, STRONG, unguided=STRONG)


def test_a_compiled_network_is_not_compiled_again_for_it(folder: Path):
    seen = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.append(graph)
        return graph.forward

    sampler = sampler_of(folder, STRONG)
    expected = sampler.draw(SEEDS).images
    sampler.model.denoiser.compile(backend=counting)
    assert torch.equal(sampler.draw(SEEDS).images, expected)
    assert not seen
    sampler.guidance = Unguided()
    sampler.draw(SEEDS)
    assert seen
