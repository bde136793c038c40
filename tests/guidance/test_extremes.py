"""Whatever the settings, the samples are finite and the promised bounds hold, or the setting is refused beforehand."""

import math

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from mixture import BatchNoise, GaussianMixture, Trajectory, near, trajectory
from strategies import PATHS, T, assert_bounds, assert_scale, or_0, posteriors, powers_of_ten, scales

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveProjectedGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ContrastiveCFG,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    DynamicSafeDenoiser,
    FeedbackGuidance,
    GeoGuide,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    PositiveAndNegative,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
)
from dng_lightning.posterior import CalibratedPosterior, TrackedPosterior
from dng_lightning.sampling import ImageNoise, Sampler, sample

pytestmark = pytest.mark.filterwarnings("ignore:a posterior tracked")
MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
SLOW = settings(max_examples=60, deadline=None)  # an example of 1,000 steps takes up to a second


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

    Where the components' widths differ, their predictions differ by what grows with x, and a push of 1e6 times
    that multiplies x at each step until no number holds it. A clip prevents that; so do equal widths, as does a network
    that normalises.
    """
    width = draw(st.sampled_from([0.0, 0.3, [0.1, 0.3, 0.5, 1.0]]))
    clipped = st.just(True) if isinstance(width, list) else st.booleans()
    mixture = GaussianMixture(PATHS[draw(st.sampled_from(sorted(PATHS)))], MEANS, width)
    return mixture, list(range(draw(st.integers(1, 3)))), draw(samplers(clipped)), draw(st.integers(1, 5))


def run(guidance: Guidance, problem: tuple[GaussianMixture, list[int], Sampler, int]) -> Trajectory:
    mixture, forbidden, sampler, batch = problem
    label = len(MEANS) - 1 if guidance.needs().class_labels else None
    return trajectory(mixture, guidance, forbidden, sampler, BatchNoise((batch, 2), seed=batch), label)


@given(problems().flatmap(lambda problem: st.tuples(st.just(problem), scales, posteriors(len(problem[1])))))
@SLOW
def test_dynamic_guidance_gives_finite_images_or_refuses_the_settings(case):
    problem, scale, setting = case
    mixture, forbidden, _, batch = problem
    predictor = mixture.shared(forbidden)
    try:
        guidance = DynamicNegativeGuidance(scale, setting.posterior())
        sample(predictor, guidance, mixture.schedule, ImageNoise(range(batch), (2,)), Sampler(1))
    except SettingError as error:
        assert predictor.nfe == 0
        event(f"refused: {str(error)[:20]}")
        return
    result = run(guidance, problem)
    assert result.x.isfinite().all()
    assert_bounds(result.posterior, setting.p_min, setting.p_max)
    assert_scale(result.scale, scale, setting.p_max)


lines = st.floats(-1e9, 1e9) | st.floats(-3, 3)


@given(
    scales,
    st.floats(0, 1),
    st.floats(1e-9, 1 - 1e-9),
    st.lists(st.integers(-20, 20), min_size=1, max_size=4, unique=True).map(sorted),
    st.lists(st.tuples(lines, lines), min_size=4, max_size=4),
    problems(),
)
@settings(SLOW, max_examples=20)
def test_calibrated_guidance_gives_finite_images(scale, weight, p_max, log_snr, fitted, problem):
    rows = [[float(level), *line] for level, line in zip(log_snr, fitted, strict=False)]
    result = run(DynamicNegativeGuidance(scale, CalibratedPosterior(rows, p_max, weight)), problem)
    assert result.x.isfinite().all()
    assert_bounds(result.posterior, 0.0, p_max)
    assert_scale(result.scale, scale, p_max)


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
    st.sampled_from([DynamicSafeDenoiser, SafeDenoiser, SafetyGuidedFlow, ShieldedDiffusion]),
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
    pi, temperature, offset, inside, most, log_r, scale, problem
):
    prior = 1e-14  # R is at most e^30
    posterior = TrackedPosterior(prior, temperature, offset, inside, p_max=prior * math.exp(log_r))
    guidance = FeedbackGuidance(pi, posterior, max_scale=most, scale=scale)
    result = run(guidance, problem)
    assert result.x.isfinite().all()
    assert scale * (1 - 1e-6) <= result.scale.min()  # lambda is at least 1
    assert result.scale.max() <= most * (1 + 1e-6)
