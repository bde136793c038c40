"""Whatever the settings, the samples are finite and the promised bounds hold, or the setting is refused beforehand."""

import math

import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from mixture import BatchNoise, GaussianMixture, Trajectory, near, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveProjectedGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ContrastiveCFG,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    FeedbackGuidance,
    GeoGuide,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    OracleSafeDenoiser,
    PositiveAndNegative,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
)
from dng_lightning.posterior import PosteriorTracker, odds
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.schedule import CosineSchedule, LinearSchedule, NoiseSchedule

T = 1000
PATHS = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "variance exploding": NoiseSchedule(torch.ones(T), torch.logspace(-2.5, 2, T, dtype=torch.double)),
    "rectified flow": NoiseSchedule(1 - torch.linspace(0.001, 0.999, T), torch.linspace(0.001, 0.999, T)),
}
MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
SLOW = settings(max_examples=60, deadline=None)  # an example of 1,000 steps takes up to a second
QUICK = settings(max_examples=300, deadline=None)


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


def or_0(strategy: st.SearchStrategy[float]) -> st.SearchStrategy[float]:
    return st.just(0.0) | strategy


scales = or_0(powers_of_ten(-3, 6))


@st.composite
def dynamic_guidance(draw: st.DrawFn, classes: int) -> dict[str, object]:
    """Settings that fit together for ``classes`` forbidden classes, but for one in six."""
    one = powers_of_ten(-12, -0.01).map(lambda p: p / classes)
    parity = draw(st.booleans())
    prior = draw(one | st.lists(one, min_size=classes, max_size=classes))
    each = prior if isinstance(prior, list) else [prior] * classes
    cap = draw(powers_of_ten(-9, 0).map(lambda gap: min(1 - gap * (1 - sum(each)), 1 - 1e-9)))
    floor = draw(or_0(powers_of_ten(-12, 0).map(lambda part: part * min(each))))
    fault = draw(st.sampled_from([None] * 15 + ["priors", "cap", "floor"]))
    return {
        "scale": draw(scales),
        "prior": each * 2 if fault == "priors" else prior,
        "temperature": draw(or_0(powers_of_ten(-3, 12))),
        "offset": draw(st.sampled_from([0.0, 1e-3, -1e-3, 1.0, -1e3, 1e9])),
        "floor": min(2 * max(each), 1.0) if fault == "floor" else floor,
        "cap": 0.9 * sum(each) if fault == "cap" else cap,
        "parity": parity,
        "own_push": 1.0 if parity else draw(st.just(1.0) | st.floats(0, 1)),
    }


def dynamic_guidance_and_classes(classes: int) -> st.SearchStrategy[tuple[int, dict[str, object]]]:
    return st.tuples(st.just(classes), dynamic_guidance(classes))


OFFSET_OF_1E12 = {"scale": 1.0, "prior": 0.1, "temperature": 0.0, "offset": 1e12, "floor": 0.0, "cap": 1 - 1e-9}
HIGH_FLOOR = {"scale": 1.0, "prior": 0.3, "temperature": 1.0, "offset": 9.0, "floor": 0.2, "cap": 0.8}


@st.composite
def samplers(draw: st.DrawFn, clipped: st.SearchStrategy[bool]) -> Sampler:
    clip = draw(st.sampled_from([0.1, 1.0, 10.0])) if draw(clipped) else None
    eta, variance = draw(
        st.sampled_from([(1.0, "beta_tilde"), (1.0, "beta"), (0.5, "beta_tilde"), (0.0, "beta_tilde")])
    )
    return Sampler(draw(st.integers(1, 20) | st.integers(1, T)), eta, variance, clip)


@st.composite
def problems(draw: st.DrawFn) -> tuple[GaussianMixture, list[int], Sampler, int]:
    """A mixture, its forbidden classes, a sampler and a number of images.

    Where the components' widths differ, their noise predictions differ by what grows with x, and a push of 1e6 times
    that multiplies x at each step until no number holds it. A clip prevents that; so do equal widths, as does a network
    that normalises.
    """
    width = draw(st.sampled_from([0.0, 0.3, [0.1, 0.3, 0.5, 1.0]]))
    clipped = st.just(True) if isinstance(width, list) else st.booleans()
    mixture = GaussianMixture(PATHS[draw(st.sampled_from(sorted(PATHS)))], MEANS, width)
    return mixture, list(range(draw(st.integers(1, 3)))), draw(samplers(clipped)), draw(st.integers(1, 5))


def run(guidance: Guidance, problem: tuple[GaussianMixture, list[int], Sampler, int]) -> Trajectory:
    mixture, forbidden, sampler, batch = problem
    wanted = len(MEANS) - 1 if guidance.needs.wanted else None
    return trajectory(mixture, guidance, forbidden, sampler, BatchNoise((batch, 2), seed=batch), wanted)


def assert_bounds(scale: Tensor, posterior: Tensor, settings: dict[str, object]) -> None:
    """What the docstrings promise of a guidance scale and of posteriors (..., K)."""
    cap, floor = settings["cap"], settings["floor"]
    assert posterior.isfinite().all()
    assert posterior.sum(-1).max() <= cap * (1 + 1e-12)  # fp64
    assert posterior.min() >= floor * (1 - 1e-12)
    assert scale.isfinite().all()
    assert scale.min() >= 0
    # fp32; and 1 - cap of a cap of 1 - 1e-9 is good to 1e-16 / 1e-9
    assert scale.max() <= settings["scale"] * cap / (1 - cap) * (1 + 2e-6)


@given(problems().flatmap(lambda problem: st.tuples(st.just(problem), dynamic_guidance(len(problem[1])))))
@SLOW
def test_dynamic_guidance_gives_finite_images_or_refuses_the_settings(case):
    problem, setting = case
    mixture, forbidden, _, batch = problem
    predictor = mixture.shared(forbidden)
    try:
        guidance = DynamicNegativeGuidance(**setting)
        sample(predictor, guidance, mixture.schedule, ImageNoise(range(batch), (2,)), Sampler(1))
    except SettingError as error:
        assert predictor.evaluations == 0
        event(f"refused: {str(error)[:20]}")
        return
    result = run(guidance, problem)
    assert result.x.isfinite().all()
    assert_bounds(result.scale, result.posterior, setting)


lines = st.floats(-1e9, 1e9) | st.floats(-3, 3)


@given(
    scales,
    st.floats(0, 1),
    st.floats(1e-9, 1 - 1e-9),
    st.lists(st.integers(0, T), min_size=1, max_size=4, unique=True).map(sorted),
    st.lists(st.tuples(lines, lines), min_size=4, max_size=4),
    problems(),
)
@settings(SLOW, max_examples=20)
def test_calibrated_guidance_gives_finite_images(scale, own_push, cap, levels, fitted, problem):
    rows = [[float(level), *line] for level, line in zip(levels, fitted, strict=False)]
    result = run(DynamicNegativeGuidance(scale, cap=cap, own_push=own_push, calibration=rows), problem)
    assert result.x.isfinite().all()
    assert_bounds(result.scale, result.posterior, {"scale": scale, "cap": cap, "floor": 0.0})


@given(scales, problems())
@settings(SLOW, max_examples=20)
def test_negative_prompting_gives_finite_images(scale, problem):
    assert run(NegativePrompting(scale), problem).x.isfinite().all()


@given(scales, or_0(powers_of_ten(-3, 12)), problems())
@settings(SLOW, max_examples=20)
def test_contrastive_guidance_gives_finite_images(scale, tau, problem):
    assert run(ContrastiveCFG(scale, tau), problem).x.isfinite().all()


@given(
    st.builds(
        SafeLatentDiffusion,
        scale=scales,
        mask_scale=or_0(powers_of_ten(-3, 9)),
        threshold=st.sampled_from([-math.inf, -1.0, 0.0, 0.04, 1e6, math.inf]),
        momentum_scale=st.floats(0, 1),
        momentum_decay=st.floats(0, 0.999),
        warmup=st.integers(0, 2 * T),
    ),
    problems(),
)
@settings(SLOW, max_examples=20)
def test_safe_latent_diffusion_gives_finite_images(guidance, problem):
    assert run(guidance, problem).x.isfinite().all()


goals = st.sampled_from(["allowed", "away"])


@given(
    st.builds(ClassifierGuidance, scale=scales, goal=goals, rule=st.sampled_from(["score", "mean"]))
    | st.builds(GeoGuide, scale=scales, goal=goals, source=st.sampled_from(["classifier", "differences"]))
    | st.builds(DynamicGeoGuide, scale=scales),
    problems(),
)
@settings(SLOW, max_examples=30)
def test_gradients_and_fixed_steps_give_finite_images(guidance, problem):
    assert run(guidance, problem).x.isfinite().all()


@given(
    st.sampled_from([OracleSafeDenoiser, SafeDenoiser, SafetyGuidedFlow, ShieldedDiffusion]),
    scales,
    st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    problems(),
)
@settings(SLOW, max_examples=30)
def test_repulsion_from_references_gives_finite_images(method, scale, spread, problem):
    images = spread * BatchNoise((8, 2), seed=1)()
    images[0] += 1e-6  # no spread at all is refused
    assert run(near(method, images, scale=scale), problem).x.isfinite().all()


@given(
    st.builds(ClassifierFreeGuidance, scales)
    | st.builds(CFGPlusPlus, st.floats(0, 1))
    | st.builds(
        AdaptiveProjectedGuidance,
        scales,
        st.floats(-0.99, 0.99),
        powers_of_ten(-9, 9) | st.just(math.inf),
        st.floats(0, 1),
    )
    | st.builds(PositiveAndNegative, st.builds(NegativePrompting, st.floats(0, 3)), st.floats(0, 3), st.booleans())
    | st.builds(LimitedInterval, st.builds(NegativePrompting, scales), powers_of_ten(-3, 0), powers_of_ten(0.1, 3)),
    problems(),
)
@settings(SLOW, max_examples=30)
def test_positive_and_wrapped_guidance_gives_finite_images(guidance, problem):
    assert run(guidance, problem).x.isfinite().all()


@given(
    st.floats(0.5, 1),
    or_0(powers_of_ten(-3, 12)),
    st.sampled_from([0.0, 1e-3, -1e-3, -1.0, 1e9, -1e9]),
    st.booleans(),
    powers_of_ten(1, 6),
    st.floats(0, 30),
    st.floats(1, 9),
    problems(),
)
@settings(SLOW, max_examples=30)
def test_feedback_guidance_gives_finite_images_at_scales_within_its_bounds(
    pi, temperature, offset, inside, most, cap, scale, problem
):
    guidance = FeedbackGuidance(pi, temperature, offset, inside, max_scale=most, cap=cap, scale=scale)
    result = run(guidance, problem)
    assert result.x.isfinite().all()
    assert scale * (1 - 1e-6) <= result.scale.min()  # lambda is at least 1
    assert result.scale.max() <= most * (1 + 1e-6)


@given(
    st.integers(1, 3).flatmap(dynamic_guidance_and_classes),
    st.lists(powers_of_ten(-3, 20) | powers_of_ten(-3, 20).map(lambda x: -x) | st.just(0.0), min_size=4, max_size=4),
    st.sampled_from(sorted(PATHS)),
    st.integers(1, T).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, t - 1))),
)
@QUICK
@example(  # log p of 1e12, where log p - (log p - log cap) used to be 0
    (2, OFFSET_OF_1E12),
    [0.0, 0.0, 0.0, 0.0],
    "linear",
    (500, 400),
)
@example(  # two classes, one far above the cap: the other used to fall below the floor
    (2, HIGH_FLOOR),
    [1.0, 0.0, -1.0, 2.0],
    "linear",
    (500, 400),
)
def test_the_bounds_hold_after_any_evidence_however_large(case, numbers, path, grid):
    classes, setting = case
    # states and predictions of up to 1e20: their squares are beyond fp32
    x_t, x_s, base, negative = (torch.full((2, 3), number) for number in numbers)
    negatives = torch.stack([negative * (k + 1) for k in range(classes)], 1)
    try:
        guidance = DynamicNegativeGuidance(**setting)
        log_p = guidance.start(x_t, classes)
    except SettingError:
        return
    tracker = guidance.tracker
    log_p = tracker.update(log_p, PATHS[path].transition(*grid), x_t, x_s, base, negatives)
    assert_bounds(setting["scale"] * odds(log_p).sum(1), log_p.exp(), setting)


@given(st.integers(1, 3).flatmap(dynamic_guidance_and_classes))
@QUICK
def test_priors_are_taken_as_they_are_or_refused(case):
    classes, setting = case
    prior, cap = setting["prior"], setting["cap"]
    try:
        log_p = PosteriorTracker(prior, cap=cap).start(2, classes, torch.device("cpu"))
    except SettingError:
        return
    p = log_p.exp()
    expected = torch.tensor(prior, dtype=torch.double).expand(2, classes)
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=0)
    assert (odds(log_p) > 0).all()
    assert odds(log_p).sum(1).max() <= cap / (1 - cap) * (1 + 2e-6)


@given(st.sampled_from(sorted(PATHS)), st.integers(1, T), st.data())
@QUICK
def test_every_kernel_is_finite_and_has_a_variance_where_evidence_is_taken(path, t, data):
    s = data.draw(st.integers(0, t - 1))
    for variance in ("beta_tilde", "beta"):
        step = PATHS[path].transition(t, s, variance=variance)
        assert all(map(math.isfinite, (step.x_coef, step.x0_coef, step.variance, step.beta_tilde)))
        assert (step.variance > 0) == (s > 0)
        assert step.beta_tilde >= 0
        assert 0 <= step.x_coef <= 1 / step.alpha_t
