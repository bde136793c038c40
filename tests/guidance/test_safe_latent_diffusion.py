"""Its form for text-to-image, step by step, and the authors' four presets."""

from dataclasses import replace

import pytest
import torch
import yaml
from mixture import BatchNoise
from torch import Tensor

from dng_lightning import shipped
from dng_lightning.errors import SettingError
from dng_lightning.guidance import ClassifierFreeGuidance, Predictions, SafeLatentDiffusion, Step
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
SHAPE = (2, 3, 4, 4)

# warm-up, s_S, threshold, s_m, beta_m, from the authors' code
PRESETS = {
    "weak": (15, 20.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}


def preset(name: str) -> SafeLatentDiffusion:
    given = yaml.safe_load(shipped.config(f"sld_{name}").read_text())["model"]["init_args"]["guidance"]
    assert given["class_path"] == "SafeLatentDiffusion"
    return SafeLatentDiffusion(**given["init_args"])


def at(index: int) -> Step:
    return Step(index, 50, 500, 490, LINEAR.transition(500, 490))


def predictions(seed: int, classes: int = 1) -> Predictions:
    """Differences of about the thresholds' size."""
    noise = BatchNoise(SHAPE, seed, dtype=torch.double)
    null = noise()
    base = null + 0.1 * noise()
    return Predictions(base, torch.stack([base + 0.03 * noise() for _ in range(classes)], 1), null=null)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_authors_update_element_by_element(name: str):
    guidance, (warmup, mask_scale, threshold, momentum_scale, decay) = preset(name), PRESETS[name]
    state = guidance.start(torch.zeros(SHAPE, dtype=torch.double), 1)
    nu, masks = [0.0] * 96, set()
    for index in (0, 1, warmup - 1, warmup, warmup + 1):
        given = predictions(index)
        guided = guidance.guide(given, state, at(index))
        state = guidance.observe(state, at(index), given.base, given.base, given)
        assert given.null is not None
        expected = []
        columns = (x.flatten().tolist() for x in (given.null, given.base, given.negatives[:, 0]))
        for place, (null, text, safety) in enumerate(zip(*columns, strict=True)):
            mask = 0.0 if text - safety >= threshold else min(1.0, mask_scale * abs(text - safety))
            push = mask * (safety - null) + momentum_scale * nu[place]
            nu[place] = decay * nu[place] + (1 - decay) * push
            expected.append(null + 7.5 * (text - null - (push if index >= warmup else 0.0)))
            masks.add(mask)
        for found, by_hand in ((guided.eps, expected), (state, nu)):
            torch.testing.assert_close(found.flatten(), torch.tensor(by_hand, dtype=torch.double), rtol=0, atol=1e-12)
        assert guided.scale.tolist() == [7.5 if index >= warmup else 0.0] * 2
    assert {1.0} < masks  # some pixels are pushed by all, some by a part


def test_without_a_push_it_is_classifier_free_guidance_bit_for_bit():
    given, state = predictions(0), torch.zeros(SHAPE, dtype=torch.double)
    expected = ClassifierFreeGuidance(7.5).guide(given, None, at(0)).eps
    for idle in (SafeLatentDiffusion(0.0, wanted_scale=7.5), SafeLatentDiffusion(1.0, warmup=1, wanted_scale=7.5)):
        assert torch.equal(idle.guide(given, state, at(0)).eps, expected)


@pytest.mark.parametrize("wanted_scale", [0.0, 1.0, 7.5])
def test_where_nothing_is_wanted_both_forms_are_one_bit_for_bit(wanted_scale: float):
    given = predictions(0, 2)
    given, nu = replace(given, base=given.null), 0.01 * torch.ones(SHAPE, dtype=torch.double)
    plain, pulled = SafeLatentDiffusion(2.0), SafeLatentDiffusion(2.0, wanted_scale=wanted_scale)
    assert torch.equal(pulled.guide(given, nu, at(0)).eps, plain.guide(given, nu, at(0)).eps)
    assert torch.equal(*(form.observe(nu, at(0), given.base, given.base, given) for form in (plain, pulled)))


def test_several_forbidden_conditions_add_up_and_those_that_are_not_active_do_not_count():
    guidance, given = preset("medium"), predictions(3, 2)
    nu = torch.zeros(SHAPE, dtype=torch.double)

    def push(given: Predictions) -> Tensor:
        none = given.base.unsqueeze(1)
        return guidance.guide(given, nu, at(20)).eps - guidance.guide(replace(given, negatives=none), nu, at(20)).eps

    each = [push(replace(given, negatives=given.negatives[:, k : k + 1])) for k in range(2)]
    torch.testing.assert_close(push(given), each[0] + each[1])
    inactive = replace(given, negatives=torch.stack([given.negatives[:, 0], given.base], 1))
    torch.testing.assert_close(push(inactive), each[0])


def test_it_asks_for_the_unconditional_prediction_only_where_it_pulls_from_it():
    assert not SafeLatentDiffusion().needs.null
    assert preset("weak").needs.null
    with pytest.raises(SettingError, match="unconditional prediction is missing"):
        preset("weak").guide(replace(predictions(0), null=None), torch.zeros(SHAPE), at(0))
    with pytest.raises(SettingError, match="wanted_scale must be at least 0 and finite"):
        SafeLatentDiffusion(wanted_scale=-1.0)
