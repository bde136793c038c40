"""Predictor, posterior, guidance and sampler know nothing of each other: every choice goes with every other."""

import dataclasses
from typing import Any

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, Trajectory, near, trajectory

import dng_lightning.guidance
import dng_lightning.posterior
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
    Guidance,
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
from dng_lightning.posterior import (
    CalibratedPosterior,
    ClassifierPosterior,
    ConstantPosterior,
    ObserverPosterior,
    Posterior,
    ProbePosterior,
    ReleasedPosterior,
    TimedPosterior,
    TrackedPosterior,
)
from dng_lightning.sampling import Sampler
from dng_lightning.schedule import KarrasSchedule, LinearSchedule, NoiseSchedule, RectifiedFlowSchedule

SCHEDULES = {"linear": LinearSchedule(), "Karras": KarrasSchedule(), "flow from pure noise": RectifiedFlowSchedule()}
REFERENCES = BatchNoise((8, 2), 9)() + torch.tensor([-1.5, 0.0])
SAMPLERS = {"ancestral": Sampler(8), "eta .5": Sampler(8, eta=0.5), "DDIM": Sampler(8, eta=0.0)}
CALIBRATION = [[-3.0, 1.1, -1.0], [4.0, 1.5, 1.0]]

POSTERIORS: dict[str, Posterior] = {
    "tracked": TrackedPosterior(0.2),
    "tracked against the complement": TrackedPosterior(0.2, reference="complement", guidance_shift_weight=0.5),
    "tracked with probes": TrackedPosterior(0.2, divergence=1),
    "timed": TimedPosterior(0.5, 0.4, prior=0.2),
    "released": ReleasedPosterior(0.2),
    "calibrated": CalibratedPosterior(CALIBRATION),
    "classifier": ClassifierPosterior(),
    "probe": ProbePosterior(),
    "constant": ConstantPosterior(0.2),
    "observer": ObserverPosterior(observe_steps=4),
}
OBSERVERS = {
    f"observer, then {name}": ObserverPosterior(posterior, observe_steps=4)
    for name, posterior in POSTERIORS.items()
    if name != "observer"
}

# without a push and with one, for each class that has a scale: the scales differ in where that is
SCALED: dict[str, tuple[Guidance, Guidance]] = {
    type(pair[1]).__name__: pair
    for pair in (
        (NegativePrompting(0.0), NegativePrompting()),
        (CFGNegativePrompt(1.0), CFGNegativePrompt()),
        (ComposableNot(0.0), ComposableNot()),
        (SignedNegative(0.0), SignedNegative()),
        (PerpNeg(0.0), PerpNeg()),
        (ContrastiveCFG(0.0), ContrastiveCFG(2.0)),
        (ConceptRemovalGuidance(0.0), ConceptRemovalGuidance()),
        (SafeLatentDiffusion(0.0), SafeLatentDiffusion()),
        (DynamicNegativeGuidance(0.0), DynamicNegativeGuidance()),
        (DynamicGeoGuide(0.0), DynamicGeoGuide()),
        (GeoGuide(0.0), GeoGuide()),
        (ClassifierGuidance(0.0), ClassifierGuidance()),
        (near(SafeDenoiser, REFERENCES, scale=0.0), near(SafeDenoiser, REFERENCES)),
        (near(DynamicSafeDenoiser, REFERENCES, scale=0.0), near(DynamicSafeDenoiser, REFERENCES)),
        (near(SafetyGuidedFlow, REFERENCES, scale=0.0), near(SafetyGuidedFlow, REFERENCES)),
        (near(ShieldedDiffusion, REFERENCES, scale=0.0), near(ShieldedDiffusion, REFERENCES)),
        (ClassifierFreeGuidance(1.0), ClassifierFreeGuidance()),
        (AdaptiveProjectedGuidance(1.0), AdaptiveProjectedGuidance()),
        (FeedbackGuidance(pi=1.0), FeedbackGuidance(pi=0.9, scale=2.0)),
    )
}
OTHERS: dict[str, Guidance] = {
    "Unguided": Unguided(),
    "CFGPlusPlus": CFGPlusPlus(),
    "AdaptiveNegative": AdaptiveNegative(NegativePrompting(), ObserverPosterior(observe_steps=4)),
    "AdaptiveNegative by a tracked posterior": AdaptiveNegative(NegativePrompting(), TrackedPosterior(0.2), 0.1),
    "AdaptiveNegative by a classifier": AdaptiveNegative(NegativePrompting(), ClassifierPosterior(), 0.1),
    "LimitedInterval": LimitedInterval(DynamicNegativeGuidance(), 0.5, 5.0),
    "LimitedInterval from pure noise": LimitedInterval(NegativePrompting(), 0.5),
    "PositiveAndNegative": PositiveAndNegative(DynamicNegativeGuidance(), 2.0),
    "PositiveAndNegative, independent": PositiveAndNegative(DynamicNegativeGuidance(), 2.0, independent=True),
    "GeoGuide by differences": GeoGuide(source="differences"),
    "GeoGuide to a class": GeoGuide(goal="class"),
    "ClassifierGuidance to a class": ClassifierGuidance(goal="class", rule="mean"),
    "SafeLatentDiffusion with a pull": SafeLatentDiffusion(cfg_scale=3.0),
}
GUIDANCES = {name: pair[1] for name, pair in SCALED.items()} | OTHERS
BY_POSTERIOR: dict[str, Any] = {
    "DynamicNegativeGuidance": lambda posterior: DynamicNegativeGuidance(posterior=posterior),
    "DynamicNegativeGuidance, skipping": lambda posterior: DynamicNegativeGuidance(1.0, posterior, skip_below=0.05),
    "DynamicGeoGuide": lambda posterior: DynamicGeoGuide(posterior=posterior),
    "DynamicSafeDenoiser": lambda posterior: near(DynamicSafeDenoiser, REFERENCES, posterior=posterior),
    "AdaptiveNegative": lambda posterior: AdaptiveNegative(NegativePrompting(), posterior, threshold=0.05),
    "FeedbackGuidance": lambda posterior: FeedbackGuidance(0.9, posterior),
}
pytestmark = pytest.mark.filterwarnings("ignore:a posterior tracked")


def run(guidance: Guidance, schedule: NoiseSchedule, sampler: Sampler, forbidden: list[int]) -> Trajectory:
    """64 images, which keep SIMD lanes full: an image's arithmetic is the same with and without its negatives."""
    mixture = GaussianMixture(schedule, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], 0.3, [0.1, 0.4, 0.2, 0.3])
    needs = guidance.needs()
    label = 1 if needs.class_labels or (needs.null and not needs.negatives) else None
    return trajectory(mixture, guidance, forbidden, sampler, BatchNoise((64, 2)), label)


def assert_finite(run: Trajectory) -> None:
    assert run.x.isfinite().all()
    assert run.scale.isfinite().all()
    for guided in run.guided:
        assert guided.denoised.isfinite().all()
        if guided.posterior is not None:
            assert ((guided.posterior >= 0) & (guided.posterior.sum(1, keepdim=True) <= 1)).all()


def public(module: Any, base: type, field: str | None = None) -> set[str]:
    """The names of a module's subclasses of ``base``, with this field if one is given."""
    label_space = [getattr(module, name) for name in module.__all__]
    label_space = [
        kind for kind in label_space if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    ]
    return {k.__name__ for k in label_space if field is None or field in {f.name for f in dataclasses.fields(k)}}


def test_none_is_left_out_here():
    # these need a network with an attention to a text; CFG++ at scale 1 is no plain prediction
    left_out = {"AttentionSubtraction", "NormalizedAttention", "OrthogonalAttention", "ValueSignFlip"}
    assert {type(guidance).__name__ for guidance in GUIDANCES.values()} == (
        public(dng_lightning.guidance, Guidance) - left_out
    )
    with_scale = public(dng_lightning.guidance, Guidance, "scale") - left_out - {"CFGPlusPlus"}
    assert set(SCALED) == with_scale
    assert {type(posterior).__name__ for posterior in POSTERIORS.values()} == (
        public(dng_lightning.posterior, Posterior)
    )


# --- reductions ---


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("guidance", [pair[0] for pair in SCALED.values()], ids=SCALED)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_without_a_push_every_guidance_gives_the_unguided_images_bit_for_bit(guidance, schedule, sampler):
    class_label = 1 if guidance.needs().class_labels else None
    mixture = GaussianMixture(schedule, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5]], 0.3, [0.1, 0.4, 0.5])
    found, expected = (
        trajectory(mixture, g, [0, 2], sampler, BatchNoise((64, 2)), class_label).x_0 for g in (guidance, Unguided())
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("forbidden", [[0], [0, 2], [3, 0, 2]], ids=["one class", "two classes", "three classes"])
@pytest.mark.parametrize(("scale", "p"), [(1.0, 0.3), (0.5, 0.1), (2.0, 0.05), (10.0, 0.001)])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_dynamic_guidance_by_a_constant_posterior_is_negative_prompting(schedule, forbidden, scale, p, sampler):
    dynamic = run(DynamicNegativeGuidance(scale, ConstantPosterior(p)), schedule, sampler, forbidden)
    constant = scale * p / (1 - len(forbidden) * p)
    expected = run(NegativePrompting(constant), schedule, sampler, forbidden)
    # fp32 odds; steps near the border of two modes amplify 1e-7 a hundredfold
    torch.testing.assert_close(dynamic.scale, len(forbidden) * expected.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(dynamic.x_0, expected.x_0, rtol=1e-5, atol=1e-4)


# --- every posterior with every guidance, on every path ---


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_guidance_is_finite_on_every_path_from_its_first_level_on(guidance, schedule, sampler):
    seen = run(guidance, schedule, sampler, [0, 2])
    assert_finite(seen)
    assert seen.levels[0] == schedule.level(schedule.T)


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(), RectifiedFlowSchedule()], ids=["linear", "flow from pure noise"]
)
@pytest.mark.parametrize(
    ("guided_by", "posterior"),
    [
        pytest.param(guided_by, posterior, id=f"{guidance} by {name}")
        for guidance, guided_by in BY_POSTERIOR.items()
        # an observer and a probe look for forbidden conditions, not for the class that is asked for
        for name, posterior in (POSTERIORS | (OBSERVERS if guidance != "FeedbackGuidance" else {})).items()
        if guidance != "FeedbackGuidance" or name not in ("observer", "probe")
    ],
)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_posterior_serves_every_guidance_that_takes_one(guided_by, posterior, schedule, sampler):
    guidance = guided_by(posterior)
    forbidden = [] if isinstance(guidance, FeedbackGuidance) else [0, 2]
    seen = run(guidance, schedule, sampler, forbidden)
    assert_finite(seen)
    if not isinstance(guidance, FeedbackGuidance | AdaptiveNegative):
        assert seen.posterior.shape == (8, 64, 2)
    needs = guidance.needs()
    assert needs.negatives or all(made.negatives.shape[1] == 0 for made in seen.predictions)
