"""What every guidance keeps to: any shape, any number of classes, no side effects, scales in range."""

import math
from dataclasses import fields, is_dataclass
from functools import partial

import pytest
import torch
from by_hand import FOUR, LINEAR, predictions, step_at
from mixture import BatchNoise, near, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    AdaptiveProjectedGuidance,
    CFGNegativePrompt,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ComposableNot,
    ConceptRemovalGuidance,
    ContrastiveCFG,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    DynamicSafeDenoiser,
    FeedbackGuidance,
    GeoGuide,
    LimitedInterval,
    NegativePrompting,
    PerpNeg,
    PositiveAndNegative,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
    SignedNegative,
    Unguided,
)
from dng_lightning.guidance.serialization import display_name_with_scale
from dng_lightning.interfaces import Guided
from dng_lightning.posterior import (
    CalibratedPosterior,
    ClassifierPosterior,
    ConstantPosterior,
    ObserverPosterior,
    ProbePosterior,
    ReleasedPosterior,
    TrackedPosterior,
)
from dng_lightning.sampling import Sampler

TRACKED = TrackedPosterior(prior=0.2)
SHIFTED = TrackedPosterior(prior=0.2, guidance_shift_weight=0.5)
GUIDANCES = [
    Unguided(),
    NegativePrompting(2.0),
    CFGNegativePrompt(2.0),
    ComposableNot(2.0),
    SignedNegative(2.0, 3.0),
    PerpNeg(2.0, 3.0),
    ContrastiveCFG(2.0, 1.0),
    ConceptRemovalGuidance(2.0, threshold=-1.0),
    SafeLatentDiffusion(2.0),
    DynamicNegativeGuidance(2.0, TRACKED),
    DynamicNegativeGuidance(2.0, ReleasedPosterior(0.2, offset=1e-4)),
    DynamicNegativeGuidance(2.0, SHIFTED),
    DynamicNegativeGuidance(2.0, TrackedPosterior(0.2, reference="complement")),
    DynamicNegativeGuidance(2.0, CalibratedPosterior([[-3.0, 1.1, -1.0], [4.0, 1.5, 1.0]])),
    DynamicNegativeGuidance(2.0, ClassifierPosterior()),
    DynamicNegativeGuidance(2.0, ClassifierPosterior(), skip_below=0.2),
    DynamicNegativeGuidance(2.0, ProbePosterior(calibration=[[0, 1, 0.5]])),
    DynamicNegativeGuidance(2.0, ConstantPosterior(0.3)),
    ClassifierFreeGuidance(2.0),
    CFGPlusPlus(0.5),
    AdaptiveProjectedGuidance(2.0, norm_threshold=1.0),
    FeedbackGuidance(0.9, TrackedPosterior(0.01, offset=-0.001), scale=1.5, low=0.5),
    FeedbackGuidance(0.9, ClassifierPosterior()),
    LimitedInterval(DynamicNegativeGuidance(2.0, SHIFTED), 0.5, 2.0),
    LimitedInterval(DynamicNegativeGuidance(2.0, ClassifierPosterior()), 0.5, 2.0),
    LimitedInterval(AdaptiveProjectedGuidance(2.0), 0.5, 2.0),
    PositiveAndNegative(DynamicNegativeGuidance(2.0, TRACKED), 2.0),
    PositiveAndNegative(DynamicNegativeGuidance(2.0, SHIFTED), 2.0, independent=True),
    ClassifierGuidance(2.0),
    ClassifierGuidance(2.0, goal="away", rule="mean"),
    ClassifierGuidance(2.0, goal="class"),
    GeoGuide(),
    GeoGuide(goal="allowed"),
    GeoGuide(source="differences"),
    GeoGuide(goal="class", source="differences"),
    DynamicGeoGuide(posterior=TRACKED),
    near(SafeDenoiser, threshold=0.0),
    near(DynamicSafeDenoiser),
    near(DynamicSafeDenoiser, posterior=TRACKED),
    near(ShieldedDiffusion),
    near(SafetyGuidedFlow),
    DynamicNegativeGuidance(2.0, ObserverPosterior(TRACKED)),
    DynamicNegativeGuidance(2.0, ObserverPosterior()),
    AdaptiveNegative(NegativePrompting(2.0), ObserverPosterior(observe_steps=[0.0, 0.4])),
    AdaptiveNegative(NegativePrompting(2.0), TRACKED, threshold=0.2),
    LimitedInterval(DynamicNegativeGuidance(2.0, ObserverPosterior(TRACKED, observe_steps=3)), 0.5, 2.0),
    LimitedInterval(AdaptiveNegative(NegativePrompting(2.0), ObserverPosterior(observe_steps=3)), 0.5, 2.0),
]
each_guidance = pytest.mark.parametrize("guidance", GUIDANCES, ids=display_name_with_scale)


def tensors(state: object) -> list[Tensor]:
    """What a state is made of."""
    if is_dataclass(state):
        return [tensor for field in fields(state) for tensor in tensors(getattr(state, field.name))]
    return [state] if isinstance(state, Tensor) else []


@each_guidance
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 4, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_guidance_takes_images_of_any_shape_and_any_number_of_classes(guidance, shape, classes):
    needs = guidance.needs()
    given = predictions(classes if needs.negatives or needs.classifier else 0, shape=(5, *shape))
    state = guidance.start(given.denoised, classes)
    for index in range(3):
        step = step_at(index=index)
        guided = guidance.guide(given, state, step)
        state = guidance.update(state, step, given.denoised, guided.denoised, given, guided)
        assert isinstance(guided, Guided)
        assert guided.denoised.shape == given.denoised.shape
        assert guided.denoised.dtype == given.denoised.dtype
        assert guided.scale.shape == (5,)
        assert guided.posterior is None or guided.posterior.shape == (5, classes)


@each_guidance
def test_guide_and_update_leave_what_they_are_given_as_it_is(guidance):
    given = predictions(2)
    state = guidance.start(given.denoised, 2)
    before = [tensor.clone() for tensor in (*tensors(given), *tensors(state))]
    guided = guidance.guide(given, state, step_at())
    guidance.update(state, step_at(), given.denoised, guided.denoised, given, guided)
    after = [*tensors(given), *tensors(state)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@each_guidance
def test_one_guidance_serves_several_batches_in_turn(guidance):
    label = 1 if guidance.needs().class_labels else None
    runs = [trajectory(FOUR, guidance, [0], Sampler(20), BatchNoise((16, 2), seed), label) for seed in (0, 1)]
    alone = [run.x_0 for run in runs]
    given = [BatchNoise((16, 2), seed) for seed in (0, 1)]
    # the steps of the two batches alternate
    xs = [float(LINEAR.sigma[-1]) * noise() for noise in given]
    states = [guidance.start(x, 1) for x in xs]
    labels = None if label is None else torch.full((16,), label)
    for step in Sampler(20).chain(LINEAR):
        for which in (0, 1):
            needs = guidance.needs(states[which], step)
            made = FOUR.predictor(guidance, [0], labels).predict(xs[which], step.level, needs)
            guided = guidance.guide(made, states[which], step)
            x_s = step.kernel.mean(xs[which], guided.denoised, guided.renoise)
            if step.kernel.std > 0:
                x_s = x_s + step.kernel.std * given[which]()
            states[which] = guidance.update(states[which], step, xs[which], x_s, made, guided)
            xs[which] = x_s
    assert all(torch.equal(a, b) for a, b in zip(alone, xs, strict=True))


@each_guidance
def test_every_posterior_that_is_shown_is_a_probability(guidance):
    label = 1 if guidance.needs().class_labels else None
    run = trajectory(FOUR, guidance, [0, 2], Sampler(20), BatchNoise((64, 2)), label)
    shown = [guided.posterior for guided in run.guided if guided.posterior is not None]
    assert len(shown) in (0, 20)
    for p in shown:
        assert ((p >= 0) & (p <= 1)).all()
        assert (p.sum(1) <= 1).all()


def test_unguided_gives_the_base_prediction():
    given = predictions(0)
    guided = Unguided().guide(given, None, step_at())
    assert guided.denoised is given.denoised
    assert torch.equal(guided.scale, torch.zeros(5))
    assert guided.posterior is None
    assert not Unguided().needs().negatives


@pytest.mark.parametrize("bad", [-0.1, 1e308, math.inf, math.nan])
@pytest.mark.parametrize(
    "method",
    [
        ClassifierFreeGuidance,
        AdaptiveProjectedGuidance,
        CFGNegativePrompt,
        ClassifierGuidance,
        ComposableNot,
        ContrastiveCFG,
        DynamicGeoGuide,
        DynamicNegativeGuidance,
        GeoGuide,
        NegativePrompting,
        PerpNeg,
        SafeLatentDiffusion,
        SignedNegative,
        *(partial(method, references="") for method in (DynamicSafeDenoiser, SafeDenoiser, SafetyGuidedFlow)),
        partial(ShieldedDiffusion, references=""),
    ],
    ids=lambda method: getattr(method, "func", method).__name__,
)
def test_a_scale_below_0_or_without_end_is_refused(method, bad):
    with pytest.raises(SettingError, match=r"scale must be at least [01]"):
        method(scale=bad)
