"""Its formula token by token, and that it does nothing at scale 0."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mixture import BatchNoise
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierFreeGuidance, OrthogonalAttention, Unguided
from dng_lightning.guidance.serialization import display_name


def tokens(seed: int) -> Tensor:
    return BatchNoise((3, 40, 6), seed, dtype=torch.double)()


def attention(z: Tensor, away: Tensor) -> Any:
    return SimpleNamespace(z=z, away=away)


def test_it_is_the_formula_token_by_token():
    plus, first, second = tokens(0), 1.5 * tokens(1), tokens(2)
    found = OrthogonalAttention(Unguided(), 4.0).edit(attention(plus, (first - plus) + (second - plus)))
    for image in range(3):
        for token in range(40):
            z = plus[image, token]
            across = [other[image, token] - z * (z @ other[image, token]) / (z @ z) for other in (first, second)]
            torch.testing.assert_close(found[image, token], z - 4 * sum(across), rtol=1e-12, atol=1e-12)
    # nothing of the base is lost
    torch.testing.assert_close((found * plus).sum(-1), plus.square().sum(-1), rtol=1e-12, atol=1e-12)


def test_it_does_nothing_at_scale_0_or_without_a_difference():
    plus, minus = tokens(0), tokens(1)
    assert torch.equal(OrthogonalAttention(Unguided(), 0.0).edit(attention(plus, minus - plus)), plus)
    assert torch.equal(OrthogonalAttention(Unguided()).edit(attention(plus, torch.zeros_like(plus))), plus)
    nothing = torch.zeros(1, 2, 6)
    assert OrthogonalAttention(Unguided()).edit(attention(nothing, torch.ones(1, 2, 6))).isfinite().all()


def test_its_settings():
    with pytest.raises(SettingError, match="scale must be at least 0 and finite; got -1"):
        OrthogonalAttention(Unguided(), -1.0)
    assert display_name(OrthogonalAttention(ClassifierFreeGuidance())) == "OrthogonalAttention(ClassifierFreeGuidance)"


def test_a_model_without_classifier_free_guidance(tmp_path: Path):
    """At scale 0 the model itself, bit for bit; else another image, with no further evaluation."""
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
    pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")
    from tiny_diffusion import tiny

    from dng_lightning.sampling import ImageNoise, Sampler, sample
    from dng_lightning.text_to_image import TextPredictor, TextToImageModel

    model = TextToImageModel.load(str(tiny(tmp_path)))
    prompts = model.encode(["a red seven"], ["blue"])

    def drawn(guidance: Unguided | OrthogonalAttention) -> tuple[Tensor, int]:
        predictor = TextPredictor(model, prompts, torch.zeros(2, dtype=torch.long))
        noise = ImageNoise([3, 14], model.latent_shape())
        return sample(predictor, guidance, model.schedule, noise, Sampler(4)), predictor.nfe

    plain, cost = drawn(Unguided())
    assert torch.equal(drawn(OrthogonalAttention(Unguided(), 0.0))[0], plain)
    pushed, pushed_cost = drawn(OrthogonalAttention(Unguided(), 4.0))
    assert pushed_cost == cost
    assert (pushed - plain).abs().max() > 1e-3
