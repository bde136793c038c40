"""Each guidance against its formula written out, and its reductions to the ones that it contains."""

import math
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from mixture import BatchNoise, GaussianMixture, across, near, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    AdaptiveProjectedGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ComposableNot,
    ContrastiveCFG,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    FeedbackGuidance,
    GeoGuide,
    Guidance,
    Guided,
    LimitedInterval,
    NegativePrompting,
    OracleNegativeGuidance,
    OracleSafeDenoiser,
    PerpNeg,
    PositiveAndNegative,
    Predictions,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
    SignedNegative,
    Step,
    SwappedNegative,
    Unguided,
)
from dng_lightning.guidance.watching import Evidence
from dng_lightning.sampling import Sampler
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
MEANS = [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]]
FOUR = GaussianMixture(LINEAR, MEANS, [0.2, 0.3, 0.4, 0.5])
IN_64_D = GaussianMixture(LINEAR, across(MEANS, 64), 0.3)
CALIBRATION = [[100.0, 1.5, 1.0], [800.0, 1.1, -1.0]]
SAMPLERS = {
    "ancestral": Sampler(100),
    "larger variance": Sampler(100, variance="beta"),
    "clipped": Sampler(100, clip=1.0),
    "DDIM": Sampler(100, eta=0.0),
    "eta .5": Sampler(100, eta=0.5),
}


def name(guidance: Guidance) -> str:
    settings = (f"{key}={value:g}" for key, value in vars(guidance).items() if isinstance(value, int | float))
    return f"{type(guidance).__name__}({', '.join(settings)})"


def samples(guidance: Guidance, forbidden: list[int], sampler: Sampler, mixture: GaussianMixture = FOUR) -> Tensor:
    # 64 images: SIMD lanes are all full, so an image's arithmetic is the same with and without its negatives
    return trajectory(mixture, guidance, forbidden, sampler, BatchNoise((64, mixture.dimensions))).x_0


def predictions(classes: int, seed: int = 0, shape: tuple[int, ...] = (5, 3, 4, 4)) -> Predictions:
    noise = BatchNoise(shape, seed)
    base = noise()
    differences = [0.1 * noise() for _ in range(max(classes, 1))]
    log_p = BatchNoise((shape[0], classes + 1), seed + 1, torch.double)().log_softmax(1)[:, :classes]
    null = base + 0.1 * BatchNoise(shape, seed + 2)()
    negatives = base.unsqueeze(1) + torch.stack(differences, 1)[:, :classes]
    return Predictions(base, negatives, log_p, null, base.unsqueeze(1) - negatives, emerging=log_p.exp().float())


def at(index: int = 0, t: int = 500, s: int = 490, count: int = 10) -> Step:
    return Step(index, count, t, s, LINEAR.transition(t, s))


# ------------------------------------------------------------------------------------------------------- reductions


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("forbidden", [[0], [0, 2, 3]], ids=["one class", "three classes"])
@pytest.mark.parametrize(
    "guidance",
    [
        NegativePrompting(0.0),
        SafeLatentDiffusion(0.0),
        DynamicNegativeGuidance(0.0),
        DynamicNegativeGuidance(0.0, prior=0.25, cap=1 - 1e-9, parity=True, offset=2e-4),
        DynamicNegativeGuidance(1.0, prior=1e-30),
        DynamicNegativeGuidance(0.0, prior=0.25, own_push=0.0),
        DynamicNegativeGuidance(0.0, calibration=CALIBRATION),
        DynamicNegativeGuidance(1.0, own_push=0.5, calibration=[[0, 1.0, -100.0]]),
        OracleNegativeGuidance(0.0),
        OracleNegativeGuidance(0.0, cap=1 - 1e-9),
        OracleNegativeGuidance(1.0, cap=1e-30),
        SafeLatentDiffusion(5.0, warmup=100),
        SafeLatentDiffusion(5.0, mask_scale=0.0),
        SafeLatentDiffusion(5.0, threshold=-math.inf),
        ClassifierGuidance(0.0),
        ClassifierGuidance(0.0, rule="mean"),
        ClassifierGuidance(1.0, cap=1e-30),
        GeoGuide(0.0),
        GeoGuide(0.0, source="differences"),
        DynamicGeoGuide(0.0, prior=0.25),
        DynamicGeoGuide(0.15, prior=1e-30),
        near(SafeDenoiser, scale=0.0),
        near(SafeDenoiser, threshold=1e9),
        near(OracleSafeDenoiser, scale=0.0),
        near(ShieldedDiffusion, scale=0.0),
        near(ShieldedDiffusion, radius=1e-9),
        near(SafetyGuidedFlow, scale=0.0),
        near(SafetyGuidedFlow, window=(0.0, 0.0)),
        AdaptiveNegative(NegativePrompting(0.0)),
        AdaptiveNegative(NegativePrompting(5.0), looks=[0.999]),
        AdaptiveNegative(DynamicNegativeGuidance(5.0), looks=[0.999]),
    ],
    ids=name,
)
def test_no_push_gives_the_unguided_images_bit_for_bit(guidance, forbidden, sampler):
    assert torch.equal(samples(guidance, forbidden, sampler), samples(Unguided(), forbidden, sampler))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize(
    ("scale", "p", "mixture"),
    [(1.0, 0.5, FOUR), (1.0, 0.1, FOUR), (0.7, 0.3, FOUR), (3.0, 0.9, FOUR), (12.5, 0.01, FOUR), (0.7, 0.3, IN_64_D)],
)
def test_a_posterior_that_is_held_fixed_gives_negative_prompting_bit_for_bit(scale, p, mixture, sampler):
    dynamic = DynamicNegativeGuidance(scale, prior=p, temperature=0.0)
    expected = scale * p / (1 - p)
    run = trajectory(mixture, dynamic, [0], sampler, BatchNoise((64, mixture.dimensions)))
    used = float(run.scale[0, 0])
    assert (run.scale == used).all()
    # the odds and the scale are each rounded to fp32, and then their product: at most 2 units in the last place
    assert used == pytest.approx(expected, rel=2 * 2**-23)
    # given the same fp32 scale, the arithmetic is the same
    assert torch.equal(run.x_0, samples(NegativePrompting(used), [0], sampler, mixture))


def test_posteriors_of_several_classes_held_fixed_and_equal_give_negative_prompting():
    dynamic = DynamicNegativeGuidance(2.0, prior=0.2, temperature=0.0)
    guided = dynamic.guide(predictions(3), dynamic.start(torch.empty(5, 3, 4, 4), 3), at())
    constant = NegativePrompting(2.0 * 0.2 / (1 - 0.6))
    # the one scales before it sums, the other sums before it scales: a rounding or two apart
    torch.testing.assert_close(guided.eps, constant.guide(predictions(3), None, at()).eps, rtol=0, atol=1e-6)


def test_safe_latent_diffusion_without_mask_and_momentum_is_negative_prompting():
    # every pixel forbidden in full
    safe = SafeLatentDiffusion(2.0, mask_scale=1e30, threshold=math.inf, momentum_scale=0.0)
    for sampler in SAMPLERS.values():
        assert torch.equal(samples(safe, [0], sampler), samples(NegativePrompting(2.0), [0], sampler))


def test_a_class_that_never_differs_from_the_base_moves_nothing():
    same = replace(predictions(1), negatives=predictions(1).base.unsqueeze(1))
    pushing = (NegativePrompting, DynamicNegativeGuidance, OracleNegativeGuidance, SafeLatentDiffusion)
    for guidance in (method(3.0) for method in pushing):
        state = guidance.start(same.base, 1)
        assert torch.equal(guidance.guide(same, state, at()).eps, same.base)
        guidance.observe(state, at(), same.base, same.base, same)


# --------------------------------------------------------------------------------------------------------- formulas


def test_unguided_gives_the_base_prediction():
    given = predictions(0)
    guided = Unguided().guide(given, None, at())
    assert guided.eps is given.base
    assert torch.equal(guided.scale, torch.zeros(5))
    assert guided.posterior is None
    assert not Unguided().needs.negatives


@pytest.mark.parametrize("classes", [1, 3])
def test_negative_prompting_is_its_formula(classes):
    given = predictions(classes)
    guided = NegativePrompting(1.7).guide(given, None, at())
    base, negatives = given.base.double().numpy(), given.negatives.double().numpy()
    expected = base - 1.7 * sum(negatives[:, k] - base for k in range(classes))
    np.testing.assert_allclose(guided.eps, expected, rtol=0, atol=2e-6)  # fp32 numbers up to 4
    np.testing.assert_allclose(guided.scale, np.full(5, 1.7), rtol=1e-7)


@pytest.mark.parametrize("priors", [[0.3], [0.1, 0.25], [0.2, 0.3, 1e-6]])
def test_dynamic_guidance_pushes_each_class_by_its_odds_against_what_is_allowed(priors):
    given, classes = predictions(len(priors)), len(priors)
    dynamic = DynamicNegativeGuidance(1.5, prior=priors)
    guided = dynamic.guide(given, dynamic.start(given.base, classes), at())
    base, negatives = given.base.double().numpy(), given.negatives.double().numpy()
    odds = np.array(priors) / (1 - sum(priors))
    expected = base - 1.5 * sum(odds[k] * (negatives[:, k] - base) for k in range(classes))
    np.testing.assert_allclose(guided.eps, expected, rtol=0, atol=2e-6)  # fp32 numbers up to 4
    np.testing.assert_allclose(guided.scale, np.full(5, 1.5 * odds.sum()), rtol=1e-6)
    np.testing.assert_allclose(guided.posterior, np.tile(priors, (5, 1)), rtol=1e-12)


def test_dynamic_guidance_pushes_each_image_by_its_own_posterior():
    given = predictions(1)
    log_p = torch.tensor([0.5, 0.01, 1e-9, 0.99, 0.2], dtype=torch.double).log().unsqueeze(1)
    guided = DynamicNegativeGuidance().guide(given, log_p, at())
    odds = (log_p.exp() / (1 - log_p.exp())).view(5, 1, 1, 1)
    expected = given.base - odds * (given.negatives[:, 0] - given.base)
    # odds of 99 times differences of up to .5, in fp32
    torch.testing.assert_close(guided.eps.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mixture", [FOUR, IN_64_D], ids=["2-D", "64-D"])
def test_exact_predictions_and_posteriors_guide_to_the_exact_prediction_of_what_is_allowed(mixture):
    # grad log p(x | not c) = grad log p(x) - sum_k odds_k (grad log p(x | c_k) - grad log p(x)), at any level
    allowed = GaussianMixture(LINEAR, mixture.means[[1]].tolist(), 0.3)
    left_out = [0, 2, 3]
    predictor = mixture.shared(left_out)
    for t in (900, 400, 100):
        x_t = 1.5 * BatchNoise((256, mixture.dimensions), seed=t, dtype=torch.double)()
        log_p = mixture.posterior(x_t, t, left_out).log()
        near = log_p.logsumexp(1) < math.log(0.99)  # beyond it fp32 odds cancel
        guided = DynamicNegativeGuidance(prior=0.2).guide(predictor.predict(x_t, t), log_p, at())
        expected = allowed.eps(x_t, torch.full((256,), t))
        assert near.sum() > 50
        # odds of up to 100 in fp32 times differences of up to 10
        torch.testing.assert_close(guided.eps[near], expected[near], rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("forbidden", [[2], [0, 2, 3]], ids=["one class", "three classes"])
def test_the_oracle_is_dynamic_guidance_by_the_posterior_that_the_predictions_carry(forbidden, scale):
    x_t, oracle = 1.5 * BatchNoise((256, 2))(), OracleNegativeGuidance(scale, cap=0.4)
    given = FOUR.predictor(oracle, forbidden).predict(x_t, 400, oracle.needs)
    log_p = given.log_posterior
    assert log_p is not None
    assert 20 < (log_p.logsumexp(1) < math.log(0.4)).sum() < 236  # both sides of the cap
    log_p = log_p - (log_p.logsumexp(1, keepdim=True) - math.log(0.4)).clamp(min=0)
    guided, expected = oracle.guide(given, None, at()), DynamicNegativeGuidance(scale).guide(given, log_p, at())
    assert torch.equal(guided.eps, expected.eps)
    assert torch.equal(guided.scale, expected.scale)
    assert guided.posterior is not None
    torch.testing.assert_close(guided.posterior, log_p.exp(), rtol=0, atol=1e-12)


def test_the_cap_of_the_oracle_keeps_the_proportions_of_the_classes_and_bounds_the_push():
    log_p = torch.tensor([[0.6, 0.3], [0.4, 0.1], [0.0, 1.0], [0.0, 0.0]]).log()
    guided = OracleNegativeGuidance(2.0, cap=0.75).guide(
        Predictions(torch.zeros(4, 1), torch.tensor([[[1.0], [10.0]]]).expand(4, 2, 1), log_p), None, at()
    )
    torch.testing.assert_close(guided.posterior, torch.tensor([[0.5, 0.25], [0.4, 0.1], [0.0, 0.75], [0.0, 0.0]]))
    # twice the odds: .5 and .25 against .25; .4 and .1 against .5; .75 against .25
    torch.testing.assert_close(guided.scale, torch.tensor([6.0, 2.0, 6.0, 0.0]))
    torch.testing.assert_close(guided.eps, -torch.tensor([[4.0 + 20], [1.6 + 4], [60], [0]]))


def transcribed_safe_latent_diffusion(
    base: np.ndarray, negative: np.ndarray, nu: np.ndarray, warming_up: bool, **setting: float
) -> tuple[np.ndarray, np.ndarray]:
    """The push and the new momentum, one number at a time, as the formula stands."""
    push, new = np.empty_like(base), np.empty_like(base)
    for at in np.ndindex(base.shape):
        difference = base[at] - negative[at]
        mask = min(setting["mask_scale"] * abs(difference), 1.0) if difference < setting["threshold"] else 0.0
        gamma = mask * (negative[at] - base[at]) + setting["momentum_scale"] * nu[at]
        new[at] = setting["momentum_decay"] * nu[at] + (1 - setting["momentum_decay"]) * gamma
        push[at] = 0.0 if warming_up else setting["scale"] * gamma
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
def test_safe_latent_diffusion_is_its_formula_element_by_element(setting, warmup):
    guidance = SafeLatentDiffusion(**setting, warmup=warmup)
    state, nu = guidance.start(torch.empty(5, 3, 4, 4), 1), np.zeros((5, 3, 4, 4))
    for index in range(6):
        given = predictions(1, seed=index)
        guided = guidance.guide(given, state, at(index))
        base, negative = given.base.double().numpy(), given.negatives[:, 0].double().numpy()
        push, nu = transcribed_safe_latent_diffusion(base, negative, nu, index < warmup, **setting)
        state = guidance.observe(state, at(index), given.base, given.base, given)
        # fp32 against fp64: numbers up to 4, a scale of 5
        np.testing.assert_allclose(guided.eps, base - push, rtol=0, atol=5e-6)
        np.testing.assert_allclose(state, nu, rtol=0, atol=1e-6)
        assert (guided.scale == (0 if index < warmup else setting["scale"])).all()


def test_safe_latent_diffusion_adds_up_the_classes_and_has_one_momentum():
    given = predictions(2)
    guidance = SafeLatentDiffusion(momentum_scale=0.0, momentum_decay=0.5)
    start = guidance.start(given.base, 2)
    both = guidance.observe(start, at(), given.base, given.base, given)
    each = [
        guidance.observe(start, at(), given.base, given.base, Predictions(given.base, given.negatives[:, k : k + 1]))
        for k in range(2)
    ]
    torch.testing.assert_close(both, each[0] + each[1], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------- the authors' release


@pytest.mark.parametrize(
    ("prior", "temperature", "offset", "floor", "cap", "scale"),
    [(0.01, 0.2, 2e-4, 1e-6, 0.8, 1.0), (0.05, 0.1, 1e-4, 1e-6, 0.99, 1.0), (0.5, 1.0, 0.0, 1e-6, 0.99, 1.0)],
    ids=["README", "the other one", "as the theory"],
)
def test_parity_follows_the_released_update_over_a_whole_trajectory(prior, temperature, offset, floor, cap, scale):
    """The released update in fp64 and probability space, index t from 999 to 0, beside the package's own run."""
    guidance = DynamicNegativeGuidance(scale, prior, temperature, offset, floor=floor, cap=cap, parity=True)
    run = trajectory(FOUR, guidance, [0], Sampler(1000, variance="beta"), BatchNoise((128, 2), dtype=torch.double))

    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.double)
    a = 1 - beta
    a_bar = a.cumprod(0)
    noise = BatchNoise((128, 2), dtype=torch.double)
    x, p = LINEAR.sigma[-1] * noise(), torch.full((128,), prior, dtype=torch.double)
    whole, left = FOUR.network(FOUR.null_class), FOUR.network(0)
    for t in range(999, -1, -1):
        level = torch.full((128,), t + 1)
        eps, eps_c = whole(x, level, None), left(x, level, None)
        # the package's odds are fp32, and 1,000 steps carry their rounding on
        torch.testing.assert_close(run.posterior[999 - t, :, 0], p, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(run.x[999 - t], x, rtol=0, atol=1e-5)
        guided = eps - (scale * p / (1 - p)).unsqueeze(1) * (eps_c - eps)
        new = (x - beta[t] / (1 - a_bar[t]).sqrt() * guided) / a[t].sqrt()
        if t > 0:
            new = new + beta[t].sqrt() * noise()
        variance = (1 - a_bar[max(t - 1, 0)]) / (1 - a_bar[t]) * beta[t]
        mean, mean_c = ((x - beta[t] / (1 - a_bar[t]).sqrt() * e) / a[t].sqrt() for e in (eps, eps_c))
        distance = (new - mean_c).square().sum(1) - (new - mean).square().sum(1)
        p = (p * ((-temperature * distance + offset) / (2 * variance)).exp()).clamp(floor, cap)
        x = new
    torch.testing.assert_close(run.x_0, x, rtol=0, atol=1e-5)
    assert len(p.unique()) > 2  # not all at a bound: the comparison was about something


def test_parity_has_the_offset_inside_and_beta_tilde_and_the_default_neither():
    default, parity = DynamicNegativeGuidance().tracker, DynamicNegativeGuidance(parity=True).tracker
    assert (default.offset_inside, default.beta_tilde) == (False, False)
    assert (parity.offset_inside, parity.beta_tilde) == (True, True)


# -------------------------------------------------------------------------------------------------------- contracts


GUIDANCES = [
    Unguided(),
    NegativePrompting(2.0),
    SwappedNegative(2.0),
    ComposableNot(2.0),
    SignedNegative(2.0, 3.0),
    PerpNeg(2.0, 3.0),
    ContrastiveCFG(2.0, 1.0),
    SafeLatentDiffusion(2.0),
    DynamicNegativeGuidance(2.0, prior=0.2),
    DynamicNegativeGuidance(2.0, prior=0.2, parity=True, offset=1e-4),
    DynamicNegativeGuidance(2.0, prior=0.2, own_push=0.5),
    DynamicNegativeGuidance(2.0, own_push=0.0, calibration=CALIBRATION),
    Evidence(),
    OracleNegativeGuidance(2.0),
    ClassifierFreeGuidance(2.0),
    CFGPlusPlus(0.5),
    AdaptiveProjectedGuidance(2.0, norm_threshold=1.0),
    FeedbackGuidance(0.9, offset=-0.001, scale=1.5, low=0.5),
    LimitedInterval(DynamicNegativeGuidance(2.0, prior=0.2, own_push=0.5), 0.5, 2.0),
    LimitedInterval(OracleNegativeGuidance(2.0), 0.5, 2.0),
    LimitedInterval(AdaptiveProjectedGuidance(2.0), 0.5, 2.0),
    PositiveAndNegative(DynamicNegativeGuidance(2.0, prior=0.2), 2.0),
    PositiveAndNegative(DynamicNegativeGuidance(2.0, prior=0.2, own_push=0.5), 2.0, independent=True),
    ClassifierGuidance(2.0),
    ClassifierGuidance(2.0, goal="away", rule="mean"),
    GeoGuide(),
    GeoGuide(goal="allowed"),
    GeoGuide(source="differences"),
    DynamicGeoGuide(prior=0.2),
    near(SafeDenoiser, threshold=0.0),
    near(OracleSafeDenoiser),
    near(ShieldedDiffusion),
    near(SafetyGuidedFlow),
    AdaptiveNegative(DynamicNegativeGuidance(2.0, prior=0.2)),
    AdaptiveNegative(NegativePrompting(2.0), looks=[0.0, 0.4], most=1),
    LimitedInterval(AdaptiveNegative(DynamicNegativeGuidance(2.0, prior=0.2), looks=3), 0.5, 2.0),
    LimitedInterval(AdaptiveNegative(NegativePrompting(2.0), looks=3), 0.5, 2.0),
]


def wanted(guidance: Guidance) -> int | None:
    return 1 if guidance.needs.wanted else None


def tensors(state: object) -> list[Tensor]:
    """What a state is made of."""
    if is_dataclass(state):
        return [tensor for field in fields(state) for tensor in tensors(getattr(state, field.name))]
    return [state] if isinstance(state, Tensor) else []


@pytest.mark.parametrize("guidance", GUIDANCES, ids=name)
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 4, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_guidance_takes_images_of_any_shape_and_any_number_of_classes(guidance, shape, classes):
    needs = guidance.needs
    given = predictions(classes if needs.negatives or needs.classifier else 0, shape=(5, *shape))
    state = guidance.start(given.base, classes)
    for index in range(3):
        guided = guidance.guide(given, state, at(index))
        state = guidance.observe(state, at(index), given.base, guided.eps, given)
        assert isinstance(guided, Guided)
        assert guided.eps.shape == given.base.shape
        assert guided.eps.dtype == given.base.dtype
        assert guided.scale.shape == (5,)
        assert guided.posterior is None or guided.posterior.shape == (5, classes)


@pytest.mark.parametrize("guidance", GUIDANCES, ids=name)
def test_guide_and_observe_leave_what_they_are_given_as_it_is(guidance):
    given = predictions(2)
    state = guidance.start(given.base, 2)
    before = [tensor.clone() for tensor in (*tensors(given), *tensors(state))]
    guidance.observe(state, at(), given.base, guidance.guide(given, state, at()).eps, given)
    after = [*tensors(given), *tensors(state)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("guidance", GUIDANCES, ids=name)
def test_one_guidance_serves_several_batches_in_turn(guidance):
    runs = [
        trajectory(FOUR, guidance, [0], Sampler(20), BatchNoise((16, 2), seed), wanted(guidance)) for seed in (0, 1)
    ]
    alone = [run.x_0 for run in runs]
    given = [BatchNoise((16, 2), seed) for seed in (0, 1)]
    # the steps of the two batches alternate
    xs = [float(LINEAR.sigma[-1]) * noise() for noise in given]
    states = [guidance.start(x, 1) for x in xs]
    for index, (t, s) in enumerate(pairwise(LINEAR.levels(20))):
        transition = LINEAR.transition(t, s)
        step = Step(index, 20, t, s, transition)
        for which in (0, 1):
            label = torch.full((16,), 1) if guidance.needs.wanted else None
            made = FOUR.predictor(guidance, [0]).predict(xs[which], t, guidance.asks(states[which], step), label)
            guided = guidance.guide(made, states[which], step)
            x_s = transition.mean(xs[which], guided.eps, guided.renoise)
            if s > 0:
                x_s = x_s + transition.variance**0.5 * given[which]()
            states[which] = guidance.observe(states[which], step, xs[which], x_s, made)
            xs[which] = x_s
    assert all(torch.equal(a, b) for a, b in zip(alone, xs, strict=True))


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize(
    "method",
    [
        ClassifierFreeGuidance,
        AdaptiveProjectedGuidance,
        ClassifierGuidance,
        DynamicGeoGuide,
        DynamicNegativeGuidance,
        GeoGuide,
        NegativePrompting,
        OracleNegativeGuidance,
        SafeLatentDiffusion,
        *(partial(method, references="") for method in (OracleSafeDenoiser, SafeDenoiser, SafetyGuidedFlow)),
        partial(ShieldedDiffusion, references=""),
    ],
    ids=lambda method: getattr(method, "func", method).__name__,
)
def test_a_scale_below_0_or_without_end_is_refused(method, bad):
    with pytest.raises(SettingError, match="scale must be at least 0"):
        method(scale=bad)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"mask_scale": -1.0}, "mask_scale must be at least 0"),
        ({"momentum_scale": -1.0}, "momentum_scale must be at least 0"),
        ({"momentum_decay": 1.0}, r"momentum_decay must be in \[0, 1\)"),
        ({"momentum_decay": math.nan}, r"momentum_decay must be in \[0, 1\)"),
        ({"threshold": math.nan}, "threshold must be a number"),
        ({"warmup": -1}, "warmup must be at least 0"),
    ],
)
def test_safe_latent_diffusion_refuses_settings_out_of_range(setting, reason):
    with pytest.raises(SettingError, match=reason):
        SafeLatentDiffusion(**setting)


@pytest.mark.parametrize(
    "setting",
    [{"prior": 0.0}, {"prior": 0.5, "cap": 0.4}, {"temperature": -1.0}, {"offset": math.inf}, {"floor": 0.2}],
)
def test_dynamic_guidance_refuses_what_its_tracker_refuses(setting):
    with pytest.raises(SettingError):
        DynamicNegativeGuidance(**setting)


@pytest.mark.parametrize("cap", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_the_oracle_refuses_a_cap_that_bounds_nothing(cap):
    with pytest.raises(SettingError, match=r"cap must be inside \(0, 1\)"):
        OracleNegativeGuidance(cap=cap)


def test_an_oracle_that_is_told_nothing_says_so():
    with pytest.raises(SettingError, match=r"wrap the predictor in WithPosterior"):
        OracleNegativeGuidance().guide(replace(predictions(1), log_posterior=None), None, at())
