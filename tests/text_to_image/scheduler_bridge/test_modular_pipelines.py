"""A guidance as the guider of a modular pipeline does what it does in our sampler."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bridged import BOTH, DYNAMIC, PREDICTIONS, assert_same, diffusers, from_modular, given, opened_modular, ours
from tiny_diffusion import tiny

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    CFGNegativePrompt,
    ClassifierFreeGuidance,
    Guidance,
)
from dng_lightning.sampling import Sampler

# --- a modular pipeline ---


@pytest.mark.parametrize(
    "guidance", [DYNAMIC, BOTH, CFGNegativePrompt(7.5)], ids=lambda guidance: type(guidance).__name__
)
def test_a_guider_does_what_our_sampler_does(guidance: Guidance, folder_xl: Path, modular: Any):
    assert_same(from_modular(modular, guidance), ours(folder_xl, guidance, Sampler(10)))


@pytest.mark.parametrize("prediction", PREDICTIONS[1:])
def test_a_guider_with_each_prediction(prediction: str, tmp_path: Path):
    folder = tiny(tmp_path, xl=True, prediction_type=prediction)
    assert_same(from_modular(opened_modular(folder), BOTH), ours(folder, BOTH, Sampler(10)))
    found = from_modular(opened_modular(folder, "DDIMScheduler"), BOTH, eta=0.4)
    assert_same(found, ours(folder, BOTH, Sampler(10, eta=0.4)))


def test_a_guider_starts_anew_with_each_call_and_shows_its_settings(modular: Any, folder_xl: Path):
    first = from_modular(modular, BOTH)
    guider, forward = modular.guider, modular.unet._forward_pre_hooks
    modular(**given(modular, seeds=[8]), output="latents")
    assert guider.hosted.trajectories.scale.shape == (1, 10)
    again = modular(**given(modular), output="latents")
    assert torch.equal(again, first[0])
    assert torch.equal(guider.hosted.trajectories.posterior, first[1])
    assert not forward  # it looks at the latents no longer
    assert guider.config["guidance"]["guidance"]["posterior"]["prior"] == 0.3
    assert ("num_conditions", 3) in guider.get_state().items()
    guider.disable()
    assert guider.num_conditions == 1


def test_a_guider_that_avoids_nothing_is_diffusers_own(modular: Any):
    modular.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=5.0))
    expected = modular(**given(modular, negative_prompt=None), output="latents")
    found, _, _ = from_modular(modular, ClassifierFreeGuidance(5.0), negative_prompt=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("library", ["diffusers.guiders.guider_utils", "transformers"])
def test_a_guider_without_the_extra(library: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "dng_lightning.text_to_image.guider", raising=False)
    with pytest.raises(SettingError, match=r"^a guider needs an extra: pip install 'dng-lightning\[text-to-image\]'$"):
        import dng_lightning.text_to_image.guider  # noqa: F401
