"""Safe Latent Diffusion element by element, in both of its forms, and the authors' four presets."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from by_hand import step_at, update
from mixture import BatchNoise
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierFreeGuidance, SafeLatentDiffusion
from dng_lightning.interfaces import Predictions, Step
from dng_lightning.schedule import RectifiedFlowSchedule
from dng_lightning.storage import resources

SHAPE = (2, 3, 4, 4)
LEVEL = step_at().level
TO_DENOISED = -LEVEL.sigma / LEVEL.alpha  # of an eps prediction about x_t = 0

# warm-up, s_S, threshold, s_m, beta_m, from the authors' code
PRESETS = {
    "weak": (15, 20.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}


def preset(name: str) -> SafeLatentDiffusion:
    given = yaml.safe_load(resources.config(f"sld_{name}").read_text())["model"]["init_args"]["guidance"]
    assert given["class_path"] == "SafeLatentDiffusion"
    return SafeLatentDiffusion(**given["init_args"])


def at(index: int) -> Step:
    return step_at(index=index, count=50)


def predictions(seed: int, classes: int = 1, apart: float = 0.03) -> tuple[Predictions, dict[str, Tensor]]:
    """Predictions whose differences in eps are about as large as the thresholds, and the eps predictions."""
    noise = BatchNoise(SHAPE, seed, dtype=torch.double)
    null = noise()
    base = null + 0.1 * noise()
    negatives = torch.stack([base + apart * noise() for _ in range(classes)], 1)
    given = Predictions(TO_DENOISED * base, TO_DENOISED * negatives, null=TO_DENOISED * null)
    return given, {"base": base, "negatives": negatives, "null": null}


# --- the form for class removal ---


def transcribed(
    base: np.ndarray, negative: np.ndarray, nu: np.ndarray, warming_up: bool, **setting: float
) -> tuple[np.ndarray, np.ndarray]:
    """The push and the new momentum, one number at a time, as the formula stands."""
    push, new = np.empty_like(base), np.empty_like(base)
    for place in np.ndindex(base.shape):
        difference = base[place] - negative[place]
        mask = min(setting["mask_scale"] * abs(difference), 1.0) if difference < setting["threshold"] else 0.0
        gamma = mask * (negative[place] - base[place]) + setting["momentum_scale"] * nu[place]
        new[place] = setting["momentum_decay"] * nu[place] + (1 - setting["momentum_decay"]) * gamma
        push[place] = 0.0 if warming_up else setting["scale"] * gamma
    return push, new


@pytest.mark.parametrize(
    "setting",
    [
        {"scale": 1.0, "mask_scale": 100.0, "threshold": 0.04, "momentum_scale": 0.1, "momentum_decay": 0.2},
        {"scale": 5.0, "mask_scale": 1.0, "threshold": 0.0, "momentum_scale": 0.5, "momentum_decay": 0.7},
        {"scale": 2.0, "mask_scale": 5.0, "threshold": 1.0, "momentum_scale": 0.0, "momentum_decay": 0.0},
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_it_is_its_formula_element_by_element(setting, warmup):
    guidance = SafeLatentDiffusion(**setting, warmup=warmup)
    state, nu = guidance.start(torch.zeros(SHAPE, dtype=torch.double), 1), np.zeros(SHAPE)
    for index in range(6):
        given, eps = predictions(index, apart=0.1)
        guided = guidance.guide(given, state, at(index))
        base, negative = eps["base"].numpy(), eps["negatives"][:, 0].numpy()
        push, nu = transcribed(base, negative, nu, index < warmup, **setting)
        state = update(guidance, state, at(index), given.denoised, given.denoised, given)
        np.testing.assert_allclose(guided.denoised / TO_DENOISED, base - push, rtol=0, atol=5e-6)
        np.testing.assert_allclose(state, nu, rtol=0, atol=1e-6)
        assert (guided.scale == (0 if index < warmup else setting["scale"])).all()


def test_it_adds_up_the_classes_and_has_one_momentum():
    given, _ = predictions(0, 2, apart=0.1)
    guidance = SafeLatentDiffusion(momentum_scale=0.0, momentum_decay=0.5)
    start = guidance.start(given.denoised, 2)
    alone = [Predictions(given.denoised, given.negatives[:, k : k + 1]) for k in range(2)]
    both, *each = (update(guidance, start, at(0), given.denoised, given.denoised, p) for p in (given, *alone))
    torch.testing.assert_close(both, each[0] + each[1], rtol=0, atol=1e-6)


def test_at_pure_noise_nothing_moves():
    step = step_at(1000, 900, schedule=RectifiedFlowSchedule())
    given, _ = predictions(0)
    guidance = SafeLatentDiffusion(5.0, momentum_scale=0.5)
    state = guidance.start(given.denoised, 1)
    assert torch.equal(guidance.guide(given, state, step).denoised, given.denoised)
    assert not update(guidance, state, step, given.denoised, given.denoised, given).any()


# --- the form for text-to-image ---


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_authors_update_element_by_element(name: str):
    guidance, (warmup, mask_scale, threshold, momentum_scale, decay) = preset(name), PRESETS[name]
    state = guidance.start(torch.zeros(SHAPE, dtype=torch.double), 1)
    nu, masks = [0.0] * 96, set()
    for index in (0, 1, warmup - 1, warmup, warmup + 1):
        given, eps = predictions(index)
        guided = guidance.guide(given, state, at(index))
        state = update(guidance, state, at(index), given.denoised, given.denoised, given)
        expected = []
        columns = (x.flatten().tolist() for x in (eps["null"], eps["base"], eps["negatives"][:, 0]))
        for place, (null, text, safety) in enumerate(zip(*columns, strict=True)):
            mask = 0.0 if text - safety >= threshold else min(1.0, mask_scale * abs(text - safety))
            push = mask * (safety - null) + momentum_scale * nu[place]
            nu[place] = decay * nu[place] + (1 - decay) * push
            expected.append(null + 7.5 * (text - null - (push if index >= warmup else 0.0)))
            masks.add(mask)
        for found, by_hand in ((guided.denoised / TO_DENOISED, expected), (state, nu)):
            torch.testing.assert_close(found.flatten(), torch.tensor(by_hand, dtype=torch.double), rtol=0, atol=1e-12)
        assert guided.scale.tolist() == [7.5 if index >= warmup else 0.0] * 2
    assert {1.0} < masks  # some pixels are pushed by all, some by a part


def test_without_a_push_it_is_classifier_free_guidance_bit_for_bit():
    (given, _), state = predictions(0), torch.zeros(SHAPE, dtype=torch.double)
    expected = ClassifierFreeGuidance(7.5).guide(given, None, at(0)).denoised
    for idle in (SafeLatentDiffusion(0.0, cfg_scale=7.5), SafeLatentDiffusion(1.0, warmup=1, cfg_scale=7.5)):
        assert torch.equal(idle.guide(given, state, at(0)).denoised, expected)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 7.5])
def test_without_a_class_or_prompt_both_forms_are_one_bit_for_bit(cfg_scale: float):
    given, _ = predictions(0, 2)
    given, nu = replace(given, denoised=given.null), 0.01 * torch.ones(SHAPE, dtype=torch.double)
    plain, pulled = SafeLatentDiffusion(2.0), SafeLatentDiffusion(2.0, cfg_scale=cfg_scale)
    assert torch.equal(pulled.guide(given, nu, at(0)).denoised, plain.guide(given, nu, at(0)).denoised)
    assert torch.equal(*(update(form, nu, at(0), given.denoised, given.denoised, given) for form in (plain, pulled)))


def test_several_forbidden_conditions_add_up_and_those_that_are_not_active_do_not_count():
    guidance, (given, _) = preset("medium"), predictions(3, 2)
    nu = torch.zeros(SHAPE, dtype=torch.double)

    def push(given: Predictions) -> Tensor:
        none = replace(given, negatives=given.denoised.unsqueeze(1))
        return guidance.guide(given, nu, at(20)).denoised - guidance.guide(none, nu, at(20)).denoised

    each = [push(replace(given, negatives=given.negatives[:, k : k + 1])) for k in range(2)]
    torch.testing.assert_close(push(given), each[0] + each[1])
    inactive = replace(given, negatives=torch.stack([given.negatives[:, 0], given.denoised], 1))
    torch.testing.assert_close(push(inactive), each[0])


def test_it_asks_for_the_unconditional_prediction_only_where_it_pulls_from_it():
    assert not SafeLatentDiffusion().needs().null
    assert preset("weak").needs().null
    with pytest.raises(SettingError, match="the predictions have no null"):
        preset("weak").guide(replace(predictions(0)[0], null=None), torch.zeros(SHAPE), at(0))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"cfg_scale": -1.0}, "cfg_scale must be at least 0 and finite"),
        ({"mask_scale": -1.0}, "mask_scale must be at least 0"),
        ({"momentum_scale": -1.0}, "momentum_scale must be at least 0"),
        ({"momentum_decay": 1.0}, r"momentum_decay must be in \[0, 1\)"),
        ({"momentum_decay": math.nan}, r"momentum_decay must be in \[0, 1\)"),
        ({"threshold": math.nan}, "threshold must be a number"),
        ({"warmup": -1}, "warmup must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, reason):
    with pytest.raises(SettingError, match=reason):
        SafeLatentDiffusion(**setting)
