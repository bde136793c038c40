"""Only what an observer sees emerging is evaluated and negated, and that is enough."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from mixture import BatchNoise, GaussianMixture
from torch import Tensor

from dng_lightning.calibration import CalibratedTracker
from dng_lightning.callbacks import GuidedSampling
from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    DynamicNegativeGuidance,
    Guidance,
    Guided,
    NegativePrompting,
    OracleNegativeGuidance,
    Predictions,
    SafeLatentDiffusion,
    Step,
)
from dng_lightning.guidance.adaptive_negative import Adapted
from dng_lightning.guidance.naming import named, scale_of, settings
from dng_lightning.modules import ClassifierModule, GuidedSampler
from dng_lightning.modules.passes import Pass
from dng_lightning.observation import WithObserver
from dng_lightning.posterior import PosteriorTracker
from dng_lightning.predictors import Predictor
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
ANGLES = [2 * math.pi * k / 10 for k in range(10)]
RING = GaussianMixture(LINEAR, [[1.5 * math.cos(a), 1.5 * math.sin(a)] for a in ANGLES], 0.15)
FORBIDDEN = [0, 3, 6]
CALIBRATION = [[100.0, 1.5, 1.0], [800.0, 1.1, -1.0]]
N = 2000
PRESENCE = torch.tensor([[0.9, 0.0, 0.3], [0.0, 0.2, 0.0], [0.05, 0.0, 0.0], [0.0, 0.1, 1.0]])


def at(index: int, count: int = 10) -> Step:
    levels = LINEAR.levels(count)
    t, s = levels[index], levels[index + 1]
    return Step(index, count, t, s, LINEAR.transition(t, s))


def drawn(guidance: Guidance, predictor: Predictor, steps: int = 50, count: int = N) -> Tensor:
    return sample(predictor, guidance, LINEAR, BatchNoise((count, 2)), Sampler(steps))


def leak(x_0: Tensor) -> float:
    return float(torch.isin(RING.nearest(x_0), torch.tensor(FORBIDDEN)).double().mean())


# --- what is asked and evaluated ---


@pytest.mark.parametrize(
    ("looks", "steps", "expected"),
    [
        ([0.0, 0.5], 10, [0, 5]),
        ([0.1, 0.12, 0.14, 0.18, 0.24, 0.32, 0.42, 0.54, 0.68, 0.84], 50, [5, 6, 7, 9, 12, 16, 21, 27, 34, 42]),
        (4, 50, [10, 20, 30, 40]),
        (1, 3, [2]),
        (20, 3, [0, 1, 2]),
        ([0.999], 50, []),
        ([5, 6, 7, 9, 12, 16, 21, 27, 34, 42], 50, [5, 6, 7, 9, 12, 16, 21, 27, 34, 42]),
        ([1, 0], 2, [0, 1]),
        ([0, 0.5], 10, [0, 5]),
    ],
)
def test_it_looks_at_the_scheduled_steps_whatever_their_number(looks, steps: int, expected: list[int]):
    guidance = AdaptiveNegative(DynamicNegativeGuidance(), looks=looks)
    state = guidance.start(torch.empty(2, 3), 3)
    assert [i for i in range(steps) if guidance.asks(state, at(i, steps)).observed] == expected
    assert guidance.needs.observed


@pytest.mark.parametrize(
    ("threshold", "most", "expected"),
    [
        (0.1, None, [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]]),
        (0.5, None, [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]),
        (0.1, 1, [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]),
        (0.01, 2, [[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]]),
        (0.1, 5, [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]]),
    ],
)
def test_what_emerges_is_evaluated_from_the_next_step_to_the_next_look_and_nothing_else(threshold, most, expected):
    predictor = RING.shared(FORBIDDEN)
    told = iter([PRESENCE, torch.zeros(4, 3)])
    observed = WithObserver(predictor, lambda x0_hat: next(told), LINEAR)
    guidance = AdaptiveNegative(NegativePrompting(), looks=[0.2, 0.6], threshold=threshold, most=most)
    counted: list[int] = []

    def on_step(step: Step, guided: Guided, x_s: Tensor) -> None:
        counted.append(predictor.evaluations)
        pushed = torch.tensor(expected).any(1) if 2 < step.index <= 6 else torch.zeros(4, dtype=torch.bool)
        assert torch.equal(guided.scale, pushed.float())

    sample(observed, guidance, LINEAR, BatchNoise((4, 2)), Sampler(10), on_step=on_step)
    spent = torch.tensor([0, *counted]).diff().tolist()
    assert spent == [4] * 3 + [4 + int(torch.tensor(expected).sum())] * 4 + [4] * 3
    assert observed.evaluations == predictor.evaluations


def test_steps_that_there_are_not_are_refused():
    guidance = AdaptiveNegative(NegativePrompting(), looks=[5, 42])
    with pytest.raises(SettingError, match="looks names step 42, and there are 42 steps, counted from 0"):
        guidance.asks(guidance.start(torch.empty(2, 3), 3), at(0, 42))


def test_the_unconditional_prediction_is_asked_for_where_the_observer_is_shown_it():
    plain, sharp = (AdaptiveNegative(NegativePrompting(), looks=[1], shown_scale=w) for w in (1.0, 7.5))
    state = plain.start(torch.empty(2, 3), 3)
    assert (plain.needs.null, sharp.needs.null) == (False, True)
    assert [sharp.asks(state, at(i)).null for i in range(3)] == [False, True, False]
    assert [sharp.asks(state, at(i)).shown_scale for i in range(3)] == [1.0, 7.5, 1.0]
    assert not plain.asks(state, at(1)).null


def test_the_observer_is_shown_the_denoised_base_prediction():
    x_t, level = BatchNoise((5, 2))(), 400
    shown: list[Tensor] = []

    def observer(x0_hat: Tensor) -> Tensor:
        shown.append(x0_hat)
        return torch.zeros(5, 3)

    guidance = AdaptiveNegative(DynamicNegativeGuidance(), looks=[0.0])
    state = guidance.start(x_t, 3)
    for clip in (None, 0.5):
        given = WithObserver(RING.shared(FORBIDDEN), observer, LINEAR, clip).predict(
            x_t, level, guidance.asks(state, at(0))
        )
        mean = (x_t - LINEAR.sigma[level] * given.base) / LINEAR.alpha[level]
        torch.testing.assert_close(shown[-1], (mean if clip is None else mean.clamp(-clip, clip)).float())
        assert given.emerging is not None
    WithObserver(RING.shared(FORBIDDEN), observer, LINEAR).predict(x_t, level, guidance.asks(state, at(1)))
    assert len(shown) == 2  # not asked, not looked


def test_a_posterior_and_an_observer_go_together():
    guidance = AdaptiveNegative(OracleNegativeGuidance(), looks=49)
    predictor = RING.predictor(guidance, FORBIDDEN)
    assert (predictor.gives_posterior, predictor.gives_observation) == (True, True)
    assert leak(drawn(guidance, predictor, count=500)) < 0.06  # .30 unguided
    assert predictor.evaluations < 1.7 * 50 * 500


# --- the removal ---


class Exact(Predictor):
    """The mixture's predictions, with the exact p(c | x_t) in place of what an observer makes of x0_hat."""

    def __init__(self) -> None:
        self.inner = RING.shared(FORBIDDEN)
        self.classes, self.gives_observation = 3, True

    def predict(self, x_t, t, needs=None, wanted=None):
        return replace(self.inner.predict(x_t, t, needs), emerging=RING.posterior(x_t, t, FORBIDDEN))


def test_as_little_is_left_as_when_all_conditions_are_evaluated_at_a_fraction_of_the_cost():
    tracked = DynamicNegativeGuidance(prior=0.1)
    every = leak(drawn(tracked, RING.shared(FORBIDDEN)))
    assert every == pytest.approx(0.095, abs=0.02)  # 50 steps; of .30
    observed, exact = _observed(), Exact()
    few = leak(drawn(AdaptiveNegative(tracked), observed))
    assert few == pytest.approx(every, abs=0.025)  # standard error of the difference .009
    assert observed.predictor.evaluations / (50 * N) < 1.7  # in place of 4
    # told p(c | x_t) itself, the tracker starts better than 50 steps would have brought it there
    assert leak(drawn(AdaptiveNegative(tracked), exact)) == pytest.approx(0.045, abs=0.02)
    assert exact.inner.evaluations / (50 * N) < 2.3


def test_a_tracker_that_is_not_told_comes_too_late():
    tracked = DynamicNegativeGuidance(prior=0.1)
    assert leak(drawn(AdaptiveNegative(tracked, trust=0.0), _observed())) > 0.2


def _observed() -> WithObserver:
    return WithObserver(RING.shared(FORBIDDEN), lambda x0_hat: RING.posterior(x0_hat, 0, FORBIDDEN), LINEAR)


@dataclass(frozen=True)
class AlwaysActive(AdaptiveNegative):
    """All conditions, from the start."""

    def start(self, x_T: Tensor, classes: int) -> Adapted:
        state = super().start(x_T, classes)
        return Adapted(torch.ones_like(state.active), state.inner)


@pytest.mark.parametrize(
    "inner",
    [
        NegativePrompting(0.7),
        SafeLatentDiffusion(2.0),
        DynamicNegativeGuidance(2.0, prior=0.2, offset=1e-3),
        DynamicNegativeGuidance(2.0, prior=[0.1, 0.5, 0.01], cap=0.8, own_push=0.3),
        DynamicNegativeGuidance(2.0, own_push=0.0, calibration=CALIBRATION),
    ],
    ids=named,
)
def test_with_all_conditions_active_it_is_the_guidance_inside_bit_for_bit(inner: Guidance):
    expected = drawn(inner, RING.shared(FORBIDDEN), count=64)
    assert torch.equal(drawn(AlwaysActive(inner, threshold=0.0), _observed(), count=64), expected)


def test_an_image_depends_on_its_seed_alone():
    guidance = AdaptiveNegative(DynamicNegativeGuidance(prior=0.1))

    def images(seeds: range) -> Tensor:
        return sample(_observed(), guidance, LINEAR, ImageNoise(seeds, (2,)), Sampler(50))

    whole, parts = images(range(24)), [images(range(i, i + 8)) for i in (0, 8, 16)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-4)  # sums grouped differently
    assert torch.equal(images(range(24)), whole)


# --- what a tracker makes of it ---


def test_what_is_not_active_is_neither_pushed_from_nor_tracked_nor_in_the_odds():
    base = torch.zeros(2, 1)
    negatives = torch.tensor([[[1.0], [2.0]], [[1.0], [2.0]]])
    given = Predictions(base, negatives, active=torch.tensor([[True, False], [True, True]]))
    for guidance in (
        DynamicNegativeGuidance(prior=0.25, offset=1e-3),
        DynamicNegativeGuidance(calibration=[[0, 1.0, math.log(1 / 3)]]),
    ):
        state = guidance.start(base, 2)
        guided = guidance.guide(given, state, at(5))
        assert guided.posterior is not None
        torch.testing.assert_close(guided.posterior, torch.tensor([[0.25, 0.0], [0.25, 0.25]]).double())
        torch.testing.assert_close(guided.scale, torch.tensor([1 / 3, 1.0]))  # .25 / .75; twice .25 / .5
        torch.testing.assert_close(guided.eps, torch.tensor([[-1 / 3], [-0.5 - 1.0]]))
        after = guidance.observe(state, at(5), base, base - 1, given)
        assert after[0, 1] == state[0, 1]
        assert ((after != state) == given.active).all()


def test_a_tracked_posterior_starts_from_what_the_observer_says_if_that_is_more():
    tracker = PosteriorTracker(prior=[0.1, 0.3], cap=0.9)
    log_p = torch.tensor([[0.1, 0.3]]).double().log().repeat(5, 1)
    p = torch.tensor([[0.0, 0.0], [0.4, 0.0], [0.05, 0.0], [0.4, 0.2], [1.0, 0.0]]).double()
    none = torch.zeros(5, 2, dtype=torch.bool)
    told = tracker.told(log_p, p, 500, none).exp()
    expected = [[0.1, 0.3], [0.4, 0.3], [0.1, 0.3], [0.4, 0.3], [0.9, 0.3]]  # .3 of the last is not active
    torch.testing.assert_close(told, torch.tensor(expected).double())
    both = tracker.told(log_p, p, 500, ~none).exp()
    torch.testing.assert_close(both[4], torch.tensor([0.9 / 1.3, 0.9 * 0.3 / 1.3]).double())
    torch.testing.assert_close(both[:4], told[:4])
    assert torch.equal(tracker.told(log_p, 0 * p, 500), log_p)

    calibrated = CalibratedTracker(CALIBRATION)
    evidence = torch.tensor([[-3.0, -2.5]]).double().repeat(5, 1)
    for level in (50, 500):
        before = calibrated.log_posterior(evidence, level).exp()
        after = calibrated.log_posterior(calibrated.told(evidence, p, level), level).exp()
        torch.testing.assert_close(after[:4], before.maximum(p)[:4])
        assert after[4].sum() == pytest.approx(0.99)
    assert torch.equal(calibrated.told(evidence, 0 * p, 500), evidence)
    flat = CalibratedTracker([[0, 0.0, 1.0]])
    assert torch.equal(flat.told(evidence, p, 500), evidence)


def test_the_observer_is_heard_once_when_a_condition_becomes_active():
    guidance = AdaptiveNegative(DynamicNegativeGuidance(prior=0.1, temperature=0.0), looks=9, trust=0.5)
    base = torch.zeros(1, 1)
    state = guidance.start(base, 2)
    found = []
    for index, says in enumerate([[0.0, 0.6], [0.0, 0.8], [0.3, 0.8], [0.0, 0.05]], start=1):
        given = Predictions(base, base.expand(1, 2, 1), active=state.active, emerging=torch.tensor([says]))
        state = guidance.observe(state, at(index), base, base, given)
        found.append((state.active.tolist()[0], [round(p, 6) for p in state.inner.exp().tolist()[0]]))
    assert found == [
        ([False, True], [0.1, 0.3]),
        ([False, True], [0.1, 0.3]),
        ([True, True], [0.15, 0.3]),
        ([False, False], [0.15, 0.3]),
    ]


@pytest.mark.parametrize("trust", [0.0, 0.5, 1.0])
def test_conditions_that_become_active_together_stay_below_the_cap(trust: float):
    guidance = AdaptiveNegative(DynamicNegativeGuidance(prior=0.45, offset=0.1, cap=0.95), looks=9, trust=trust)
    base = torch.zeros(1, 1)
    state = guidance.start(base, 2)
    for index, says in enumerate([[0.6, 0.0], [0.6, 0.0], [0.0, 0.6], [0.6, 0.6], [0.6, 0.6]], start=1):
        given = Predictions(base, base.expand(1, 2, 1), active=state.active, emerging=torch.tensor([says]))
        state = guidance.observe(state, at(index), base, base, given)
        assert float((state.inner.exp() * state.active).sum()) <= 0.95 + 1e-6


# --- names ---


def test_a_guidance_in_another_is_named_and_described_with_it():
    plain, parity = DynamicNegativeGuidance(3.0), DynamicNegativeGuidance(2.0, parity=True)
    assert named(plain) == "DynamicNegativeGuidance"
    assert named(parity) == "DynamicNegativeGuidance, parity"
    nested = AdaptiveNegative(AdaptiveNegative(parity))
    assert named(nested) == "AdaptiveNegative(AdaptiveNegative(DynamicNegativeGuidance, parity))"
    assert (scale_of(nested), scale_of(plain), scale_of(AdaptiveNegative(AlwaysActive(NegativePrompting())))) == (
        2.0,
        3.0,
        1.0,
    )
    plain.start(torch.empty(1, 1), 1)  # makes its tracker, which is no setting
    described = json.loads(Pass(named(AdaptiveNegative(plain)), AdaptiveNegative(plain)).settings)
    assert (described["class"], described["looks"], described["most"]) == ("AdaptiveNegative", 20, None)
    assert described["guidance"] == json.loads(settings(plain))
    assert described["guidance"]["class"] == "DynamicNegativeGuidance"
    assert described["guidance"]["scale"] == 3.0
    assert "tracker" not in described["guidance"]
    assert json.loads(Pass("Rejection", plain).settings) == {"class": "Rejection"}


# --- with a classifier ---


def test_the_classifier_is_the_observer(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[Tensor] = []
    probabilities = ClassifierModule.probabilities

    def watched(self: ClassifierModule, x: Tensor) -> Tensor:
        shown.append(x)
        return probabilities(self, x)

    monkeypatch.setattr(ClassifierModule, "probabilities", watched)
    guidance = AdaptiveNegative(DynamicNegativeGuidance(5.0), looks=[0.25, 0.5], threshold=0.0)
    sampler = GuidedSampler(str(tiny_checkpoint), [3, 5], guidance, classifier="digits-classifier", steps=4)
    samples = sampler.draw([0, 1, 2])
    assert len(shown) == 3  # the looks, and the labels
    assert all(x.abs().max() <= 1 for x in shown)
    assert samples.evaluations == 4 + 2 * 2  # two conditions at the last two steps
    assert samples.posterior is not None
    assert (samples.posterior[:, :2] == 0).all()
    assert (samples.posterior[:, 2:] > 0).all()
    assert shown[0].shape == samples.images.shape
    p = probabilities(sampler.classifier, shown[0])[:, [3, 5]]
    torch.testing.assert_close(samples.posterior[:, 2] >= p.clamp(max=0.4), torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(probabilities(sampler.classifier, shown[0]).sum(1), torch.ones(3))


def test_another_classifier_can_be_the_observer_and_the_row_names_it(tiny_checkpoint: Path):
    guidance = AdaptiveNegative(DynamicNegativeGuidance(5.0), looks=[0.25], threshold=0.0)
    settings = {"forbidden": [3, 5], "guidance": guidance, "steps": 4}
    own = GuidedSampler(str(tiny_checkpoint), classifier="digits-classifier", **settings)
    other = GuidedSampler(str(tiny_checkpoint), classifier=None, observer="digits-classifier", **settings)
    torch.testing.assert_close(other.draw([0, 1]).images, own.draw([0, 1]).images)
    assert other.draw([0]).evaluations == 4 + 2 * 2
    assert json.loads(other.todo[1].settings)["observer"] == "digits-classifier"
    assert "observer" not in json.loads(own.todo[1].settings)
    assert "observer" not in json.loads(other.todo[0].settings)  # nobody looks at unguided images
    with pytest.raises(SettingError, match=r"observer mnist-classifier judges images of \(1, 28, 28\)"):
        GuidedSampler(str(tiny_checkpoint), classifier=None, observer="mnist-classifier", **settings)


# --- errors ---


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"looks": 0}, "looks must be"),
        ({"looks": []}, "looks must be"),
        ({"looks": [0.1, 1.0]}, "looks must be"),
        ({"looks": [-0.1]}, "looks must be"),
        ({"looks": [0.5, 2]}, "looks must be"),
        ({"looks": [-1, 2]}, "looks must be"),
        ({"shown_scale": -1.0}, "shown_scale must be at least 0 and finite"),
        ({"threshold": 1.1}, "threshold must be between 0 and 1"),
        ({"trust": -0.1}, "trust must be between 0 and 1"),
        ({"trust": math.nan}, "trust must be between 0 and 1"),
        ({"most": 0}, "most must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, reason):
    with pytest.raises(SettingError, match=reason):
        AdaptiveNegative(NegativePrompting(), **setting)


def test_without_an_observer_one_line_says_so(tiny_checkpoint: Path):
    guidance = AdaptiveNegative(DynamicNegativeGuidance())
    with pytest.raises(SettingError, match=r"AdaptiveNegative needs an observer: wrap the predictor in WithObserver"):
        drawn(guidance, RING.shared(FORBIDDEN))
    given = Predictions(torch.zeros(1, 1), torch.zeros(1, 3, 1))
    with pytest.raises(SettingError, match="needs an observer"):
        guidance.observe(guidance.start(given.base, 3), at(5), given.base, given.base, given)
    with pytest.raises(SettingError, match=r"AdaptiveNegative\(Dynamic.*\) needs a classifier to look at the images"):
        GuidedSampler(str(tiny_checkpoint), guidance=guidance, classifier=None)
    with pytest.raises(SettingError, match="GuidedSampling has no observer"):
        GuidedSampling(guidance=guidance)
