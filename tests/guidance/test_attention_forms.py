"""NASA and VSF token by token, on a whole attention; and what all guidances inside the attention have in common."""

import math

import pytest
import torch
from by_hand import nth_step
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AttentionSubtraction,
    ClassifierFreeGuidance,
    NormalizedAttention,
    OrthogonalAttention,
    Unguided,
    ValueSignFlip,
)
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.interfaces import Predictions
from dng_lightning.text_attention import Keys, TextAttention

B, HEADS, N, DEPTH = 3, 2, 5, 4
ALL = [AttentionSubtraction, NormalizedAttention, OrthogonalAttention, ValueSignFlip]
IDLE = {NormalizedAttention: 1.0}


def keys(tokens: int, **more: Tensor) -> Keys:
    shape = (B, HEADS, tokens, DEPTH)
    return Keys(torch.randn(shape, dtype=torch.double), torch.randn(shape, dtype=torch.double), **more)


def attention(joint: bool = False, active: Tensor | None = None) -> TextAttention:
    """Of two forbidden texts of 3 and 7 tokens, the second with 2 of padding; the image's text masks its last token."""
    torch.manual_seed(0)
    query = torch.randn(B, HEADS, N, DEPTH, dtype=torch.double)
    bias = torch.tensor([0.0, 0.0, 0.0, -torch.inf], dtype=torch.double).view(1, 1, 1, 4)
    padding = torch.arange(7) > 4
    texts = [keys(3), keys(7)]
    return TextAttention(query, keys(4, bias=bias), texts, [None, padding], keys(6) if joint else None, active)


def by_hand(seen: TextAttention, image: int, factors: list[float], biases: list[float]) -> Tensor:
    """The outputs of an image, score by score: of the image's own tokens, its text, and the forbidden texts."""
    parts = [seen.image, seen.text, *seen.negatives]
    rows = []
    for head in range(HEADS):
        for q in seen.query[image, head]:
            weights, values = [], []
            for part, factor, bias in zip(parts, factors, biases, strict=True):
                if part is None or factor == 0:
                    continue
                for token in range(part.key.shape[2]):
                    hidden = part is seen.text and token == 3
                    hidden = hidden or (len(factors) > 3 and part is seen.negatives[1] and bias and token > 4)
                    score = float(q @ part.key[image, head, token]) / math.sqrt(DEPTH) + bias
                    weights.append(0.0 if hidden else math.exp(score))
                    values.append(factor * part.value[image, head, token])
            rows.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return torch.stack(rows).view(HEADS, N, DEPTH).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("joint", [False, True], ids=["cross", "joint"])
def test_attention_subtraction_is_its_formula(joint: bool):
    active = torch.tensor([[True, True], [False, True], [False, False]])
    seen = attention(joint, active)
    found = AttentionSubtraction(Unguided(), 0.3).edit(seen)
    for image, on in enumerate(active.tolist()):
        plus = by_hand(seen, image, [1, 1, 0, 0], [0, 0, 0, 0])
        others = [by_hand(seen, image, factors, [0, 0, 0, 0]) for factors in ([1, 0, 1, 0], [1, 0, 0, 1])]
        expected = plus - 0.3 * sum(z for z, counts in zip(others, on, strict=True) if counts)
        torch.testing.assert_close(found[image], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("joint", [False, True], ids=["cross", "joint"])
def test_value_sign_flip_is_its_formula(joint: bool):
    """And a forbidden text that does not count for an image, and padding, are not seen."""
    active = torch.tensor([[True, True], [False, True], [False, False]])
    seen = attention(joint, active)
    found = ValueSignFlip(Unguided(), 2.5, -0.4).edit(seen)
    for image, on in enumerate(active.tolist()):
        expected = by_hand(seen, image, [1, 1, *(-2.5 * counts for counts in on)], [0, 0, -0.4, -0.4])
        torch.testing.assert_close(found[image], expected, rtol=0, atol=1e-12)
    whole = ValueSignFlip(Unguided(), 2.5, -0.4).edit(attention(joint))
    torch.testing.assert_close(whole[0], found[0], rtol=0, atol=1e-12)
    assert (whole[2] - found[2]).abs().max() > 1e-2


def test_value_sign_flip_of_tokens_that_nobody_attends_to_changes_nothing():
    seen = attention()
    torch.testing.assert_close(ValueSignFlip(Unguided(), 3.5, -100.0).edit(seen), seen.z, rtol=0, atol=1e-12)


def test_the_outputs_of_several_texts_add_up():
    seen = attention()
    torch.testing.assert_close(seen.away, seen.negative - 2 * seen.z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ALL)
def test_at_its_identity_scale_no_attention_is_edited(kind: type[AttentionGuidance]):
    idle, step = kind(Unguided(), IDLE.get(kind, 0.0)), nth_step(0)
    given = Predictions(torch.ones(2, 1), torch.empty(2, 0, 1))
    assert idle.needs(None, step).attention is None
    assert idle.needs().attention is not None  # it avoids something all the same
    assert idle.guide(given, None, step).scale.tolist() == [idle.identity_scale] * 2
    pushed = kind(Unguided(), 2.0)
    assert pushed.needs(None, step).attention == pushed.edit
    assert pushed.guide(given, None, step).scale.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("kind", [AttentionSubtraction, OrthogonalAttention, ValueSignFlip])
def test_settings(kind: type[AttentionGuidance]):
    with pytest.raises(SettingError, match="scale must be at least 0 and finite; got -1"):
        kind(Unguided(), -1.0)
    assert display_name(kind(ClassifierFreeGuidance())) == f"{kind.__name__}(ClassifierFreeGuidance)"
    with pytest.raises(SettingError, match=r"bias must be in \(-inf, inf\); got inf"):
        ValueSignFlip(Unguided(), bias=math.inf)
