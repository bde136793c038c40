"""Its formula token by token, what it asks for and when, and who refuses it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_hand import LINEAR, nth_step
from mixture import BatchNoise, GaussianMixture
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    LimitedInterval,
    NegativePrompting,
    NormalizedAttention,
    PositiveAndNegative,
    Unguided,
)
from dng_lightning.guidance.serialization import display_name, scale_of
from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.sampling import sample

NAG = NormalizedAttention(Unguided())


def tokens(seed: int) -> Tensor:
    return BatchNoise((3, 40, 6), seed, dtype=torch.double)()


def attention(z: Tensor, away: Tensor) -> Any:
    return SimpleNamespace(z=z, away=away)


# --- the formula ---


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_it_is_the_papers_formula_token_by_token(norm):
    plus, minus = tokens(0), 1.5 * tokens(1)
    found = NormalizedAttention(Unguided(), 5.0, 4.0, 0.25, norm).edit(attention(plus, minus - plus))
    ratios = []
    for image in range(3):
        for token in range(40):
            z, other = plus[image, token].tolist(), minus[image, token].tolist()
            pushed = [5 * a - 4 * b for a, b in zip(z, other, strict=True)]
            lengths = [sum(map(abs, x)) if norm == "l1" else math.hypot(*x) for x in (pushed, z)]
            ratios.append(lengths[0] / lengths[1])
            factor = min(ratios[-1], 4.0) / ratios[-1]
            expected = [0.25 * factor * a + 0.75 * b for a, b in zip(pushed, z, strict=True)]
            torch.testing.assert_close(
                found[image, token], torch.tensor(expected, dtype=torch.double), rtol=1e-12, atol=1e-14
            )
    assert min(ratios) < 3.5  # tau is reached, and it is not
    assert max(ratios) > 5


def test_several_forbidden_texts_add_up():
    plus, first, second = tokens(0), tokens(1), tokens(2)
    both = NormalizedAttention(Unguided(), 3.0, 1e9, 1.0).edit(attention(plus, (first - plus) + (second - plus)))
    torch.testing.assert_close(both, 5 * plus - 2 * first - 2 * second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_no_token_grows_by_more_than_tau(norm):
    plus, minus = tokens(0), tokens(1)
    found = NormalizedAttention(Unguided(), 50.0, 1.7, 1.0, norm).edit(attention(plus, minus - plus))
    order = int(norm[1])
    torch.testing.assert_close(found.norm(order, -1), 1.7 * plus.norm(order, -1))


def test_without_a_push_everything_stays_as_it_is_bit_for_bit():
    plus, away = tokens(0).float(), tokens(1).float()
    for idle in (NormalizedAttention(Unguided(), 1.0), NormalizedAttention(Unguided(), alpha=0.0)):
        assert torch.equal(idle.edit(attention(plus, away)), plus)
    for alpha in (0.3, 0.7, 1.0):  # nor where all is said alike
        assert torch.equal(
            NormalizedAttention(Unguided(), alpha=alpha).edit(attention(plus, torch.zeros_like(plus))), plus
        )


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_tokens_of_zeros_are_left_finite(norm):
    zero, one = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    guidance = NormalizedAttention(Unguided(), 2.0, norm=norm, alpha=1.0)
    assert torch.equal(guidance.edit(attention(zero, one)), zero)  # tau times nothing
    assert torch.equal(guidance.edit(attention(one, one)), zero)
    assert torch.equal(guidance.edit(attention(zero, zero)), zero)


# --- when ---


@pytest.mark.parametrize(("end", "count", "steps"), [(1.0, 4, 4), (0.75, 4, 3), (0.5, 5, 3), (0.1, 4, 1), (0.0, 4, 0)])
def test_it_acts_on_the_first_steps(end: float, count: int, steps: int):
    guidance = NormalizedAttention(Unguided(), 4.0, end=end)
    asked = [guidance.needs(None, nth_step(i, count)) for i in range(count)]
    assert [needs.attention is not None for needs in asked] == [i < steps for i in range(count)]
    given = Predictions(torch.ones(2, 1), torch.empty(2, 0, 1))
    guided = [guidance.guide(given, None, nth_step(i, count)) for i in range(count)]
    assert [g.scale.tolist() for g in guided] == [[4.0 if i < steps else 1.0] * 2 for i in range(count)]
    assert all(torch.equal(g.denoised, given.denoised) for g in guided)


def test_it_asks_for_what_the_other_needs_and_for_its_attention():
    assert Unguided().needs() == Needs()
    assert NAG.needs() == Needs(attention=NAG.edit)
    assert NAG.needs().avoids
    assert not Needs().avoids
    around = NormalizedAttention(ClassifierFreeGuidance(7.5))
    assert around.needs() == Needs(null=True, class_labels=True, attention=around.edit)
    for outer in (PositiveAndNegative(NAG, 7.5), AdaptiveNegative(NAG), LimitedInterval(NAG, 0.5)):
        assert outer.needs().attention == NAG.edit
    assert display_name(around) == "NormalizedAttention(ClassifierFreeGuidance)"
    assert scale_of(around) == 5.0


def test_outside_an_interval_the_base_is_plain_also_where_a_posterior_is_tracked():
    steps = [nth_step(i) for i in range(10)]
    for inner in (Unguided(), NegativePrompting(), DynamicNegativeGuidance()):
        guidance = LimitedInterval(NormalizedAttention(inner), 0.5, 5.0)
        state = guidance.start(torch.empty(1, 1), 1)
        acts = [guidance.needs(state, step).attention is not None for step in steps]
        assert acts == [0.5 < step.level.sigma / step.level.alpha <= 5.0 for step in steps]
        assert 0 < sum(acts) < 10


# --- who refuses it, and what it refuses ---


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"scale": 0.9}, "scale must be at least 1 and finite"),
        ({"scale": math.inf}, "scale must be at least 1 and finite"),
        ({"tau": 0.5}, "tau must be at least 1 and finite"),
        ({"tau": math.nan}, "tau must be at least 1 and finite"),
        ({"alpha": 1.1}, "alpha must be in .0, 1."),
        ({"end": -0.1}, "end must be in .0, 1."),
        ({"norm": "l3"}, "norm must be l1 or l2"),
    ],
)
def test_settings_out_of_range_are_refused(setting, reason):
    with pytest.raises(SettingError, match=reason):
        NormalizedAttention(Unguided(), **setting)


def test_where_there_is_no_text_one_line_says_so():
    mixture = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0]], 0.3)
    with pytest.raises(SettingError, match="NormalizedAttention acts in the attention to a text: it needs a TextPred"):
        sample(mixture.shared([0]), NAG, LINEAR, BatchNoise((2, 2)))
