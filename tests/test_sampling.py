"""The whole chain on Gaussian mixtures with exact predictions, where what must come out is known."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from dng_lightning.predictors import ClassConditionalPredictor, Predictor, WithPosterior
from mixture import BatchNoise, GaussianMixture, across, ring, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    Guidance,
    Guided,
    Needs,
    NegativePrompting,
    OracleNegativeGuidance,
    SafeLatentDiffusion,
    Step,
    Unguided,
)
from dng_lightning.posterior import PosteriorTracker
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.schedule import CosineSchedule, LinearSchedule, NoiseSchedule

LINEAR = LinearSchedule()
TWO = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0]], 0.3)
FOUR = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], 0.3, [0.1, 0.4, 0.2, 0.3])
N = 4096  # a share of 2 % is then known to .002, of 20 % to .006, of 50 % to .008; a mean of width .3 to .005 and less


def draw(mixture: GaussianMixture, guidance: Guidance, forbidden: list[int], sampler: Sampler, seed: int = 0) -> Tensor:
    return sample(mixture.predictor(guidance, forbidden), guidance, mixture.schedule, BatchNoise((N, 2), seed), sampler)


def tracked(scale: float = 1.0, **settings: Any) -> DynamicNegativeGuidance:
    return DynamicNegativeGuidance(scale, prior=0.5, **settings)


# ---------------------------------------------------------------------------------------------- numerical reference

DDPM, DDPM_50, DDIM = Sampler(1000), Sampler(50), Sampler(1000, eta=0.0)

# Two modes, the left one forbidden: its share of the samples, and the mean and width of the other mode. Half of its own
# push is not in the reference, but measured here.
REFERENCE = {
    "unguided": (Unguided(), DDPM, 0.50, 1.50, 0.29),
    "negative prompting .25": (NegativePrompting(0.25), DDPM, 0.34, 2.2, 0.31),
    "negative prompting .5": (NegativePrompting(0.5), DDPM, 0.25, 2.9, 0.31),
    "negative prompting 1": (NegativePrompting(1.0), DDPM, 0.13, 4.4, 0.32),
    "negative prompting 2": (NegativePrompting(2.0), DDPM, 0.036, 7.4, 0.31),
    "exact posterior": (OracleNegativeGuidance(), DDPM, 0.0013, 1.50, 0.29),
    "exact posterior, 50 steps": (OracleNegativeGuidance(), DDPM_50, 0.0003, 1.50, 0.25),
    "tracked posterior": (tracked(), DDPM, 0.021, 1.495, 0.29),
    "tracked posterior, 50 steps": (tracked(), DDPM_50, 0.050, 1.545, 0.35),
    "tracked posterior, scale 3": (tracked(3.0), DDPM, 0.0, 1.56, 0.29),
    "tracked posterior, half of its own push": (tracked(own_push=0.5), DDPM, 0.0, 1.56, 0.287),
    "tracked posterior, DDIM": (tracked(), DDIM, 0.20, 1.55, 0.28),
    "tracked posterior and divergence, DDIM": (tracked(divergence=1), DDIM, 0.022, 1.507, 0.294),
    "the authors' CIFAR-10 setting": (
        tracked(temperature=0.2, offset=2e-4, parity=True),
        Sampler(1000, variance="beta"),
        0.0,
        4.08,
        0.12,
    ),
}


@pytest.mark.parametrize("row", REFERENCE)
def test_removing_one_mode_of_two_gives_the_reference(row):
    guidance, sampler, forbidden, mean, width = REFERENCE[row]
    x_0 = draw(TWO, guidance, [0], sampler)
    bad = TWO.nearest(x_0) == 0
    kept = x_0[~bad, 0]
    # The reference's shares are samples as well, to two digits: 4 standard errors of ours, and .01 for theirs where the
    # share is large (.002 where it is small, for a cap that it does not state)
    error = math.sqrt(max(forbidden, 0.001) * (1 - forbidden) / N)
    assert float(bad.double().mean()) == pytest.approx(forbidden, abs=4 * error + (0.01 if forbidden > 0.1 else 0.002))
    # means to the two or three digits given, over at least 2,000 images of this width
    assert float(kept.mean()) == pytest.approx(mean, abs=0.02 if mean < 2 else 0.07)
    # widths: 2 %; at 50 steps a few images that a cap of .99 throws far out make up a tenth and more of it
    assert float(kept.std()) == pytest.approx(width, abs=0.12 if row == "tracked posterior, 50 steps" else 0.02)


@pytest.mark.parametrize("eta", [0.25, 0.5, 0.75, 0.9])
def test_between_deterministic_and_ancestral_the_noise_of_the_sampler_makes_up_for_what_is_not_drawn(eta):
    # without it the leak is .197, .179, .141 and .081; at eta 1 it is .03 (250 steps)
    bad = TWO.nearest(draw(TWO, tracked(), [0], Sampler(250, eta=eta))) == 0
    assert float(bad.double().mean()) < 0.05


@pytest.mark.parametrize(("steps", "all_", "rest"), [(20, 0.065, 0.008), (50, 0.05, 0.008)])
def test_kernels_against_the_rest_leave_less_in_few_steps(steps, all_, rest):
    for against, leak in (("all", all_), ("rest", rest)):
        bad = TWO.nearest(draw(TWO, tracked(against=against), [0], Sampler(steps))) == 0
        assert float(bad.double().mean()) == pytest.approx(leak, abs=4 * (leak / N) ** 0.5)


@pytest.mark.parametrize(
    ("guidance", "leak"),
    [(OracleNegativeGuidance(), 0.004), (DynamicNegativeGuidance(1.0, prior=[0.1, 0.2]), 0.03)],
    ids=["exact posterior", "tracked posterior"],
)
def test_several_forbidden_classes_leave_the_exact_conditional_of_the_others(guidance, leak):
    x_0 = draw(FOUR, guidance, [0, 2], Sampler(500))
    component = FOUR.nearest(x_0)
    shares = torch.bincount(component, minlength=4) / N
    assert float(shares[0] + shares[2]) < leak  # discretisation, as for two modes: .0025 and .02
    kept = shares[[1, 3]] / shares[[1, 3]].sum()
    # the conditional's 4/7 and 3/7: standard error .008, and the leak's origin
    torch.testing.assert_close(kept, torch.tensor([4 / 7, 3 / 7]), rtol=0, atol=4 * 0.008)
    for label, mean in ((1, [1.5, 0.0]), (3, [0.0, -1.5])):
        images = x_0[component == label]
        # 1,750 images of width .3: .007; guidance leaves the modes where they are, to 1 % of their distance
        torch.testing.assert_close(images.mean(0), torch.tensor(mean), rtol=0, atol=0.03)
        torch.testing.assert_close(images.std(0), torch.tensor([0.3, 0.3]), rtol=0, atol=0.025)


@pytest.mark.parametrize(
    ("guidance", "leak", "moved"),
    # The leak is of a quarter; tracking leaves .05 at 50 steps and .02 at 1,000 in two dimensions, and throws a few
    # images out of the modes. A mean of 130 images of width .3 is known to .026; the modes are 2.3 from each other
    [(OracleNegativeGuidance(), 0.004, 0.1), (DynamicNegativeGuidance(1.0, prior=1 / 8), 0.06, 0.2)],
    ids=["exact posterior", "tracked posterior"],
)
def test_in_64_dimensions_they_leave_the_exact_conditional_of_six_modes_of_eight(guidance, leak, moved):
    mixture, count = GaussianMixture(LINEAR, ring(3.0, 8, 64), 0.3), 1024
    predictor = mixture.predictor(guidance, [0, 3])
    x_0 = sample(predictor, guidance, LINEAR, BatchNoise((count, 64)), Sampler(100))
    component = mixture.nearest(x_0)
    shares = torch.bincount(component, minlength=8) / count
    assert float(shares[0] + shares[3]) < leak
    plane = torch.tensor(across([[1.0, 0.0], [0.0, 1.0]], 64), dtype=torch.double)  # the modes', which pushes lie in
    for label in (1, 2, 4, 5, 6, 7):
        assert float(shares[label]) == pytest.approx(1 / 6, abs=4 * 0.012)  # standard errors
        away = x_0[component == label] - mixture.means[label]
        assert (plane @ away.mean(0)).abs().max() < moved
        assert float(away.std()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("label", range(4))
def test_a_wanted_class_is_the_base_of_the_guidance(label):
    predictor, wanted = FOUR.shared([0]), torch.full((512,), label)
    x_0 = sample(predictor, Unguided(), LINEAR, BatchNoise((512, 2)), Sampler(100), wanted)
    assert (FOUR.nearest(x_0) == label).all()  # the modes are five widths apart from the border
    torch.testing.assert_close(x_0.mean(0), FOUR.means[label].float(), rtol=0, atol=4 * 0.3 / 512**0.5)


PATHS = {
    "linear": LINEAR,
    "cosine": CosineSchedule(),
    "variance exploding": NoiseSchedule(torch.ones(1000), torch.logspace(-2, 2, 1000, dtype=torch.double)),
    "rectified flow": NoiseSchedule(1 - torch.linspace(0.001, 0.999, 1000), torch.linspace(0.001, 0.999, 1000)),
}


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_unguided_samples_of_any_path_are_those_of_the_mixture(path, eta):
    mixture = GaussianMixture(PATHS[path], [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5]], 0.3, [0.2, 0.3, 0.5])
    x_0 = draw(mixture, Unguided(), [0], Sampler(500, eta=eta))
    component = mixture.nearest(x_0)
    # 4 standard errors of the shares
    torch.testing.assert_close(
        torch.bincount(component, minlength=3) / N, torch.tensor([0.2, 0.3, 0.5]), rtol=0, atol=4 * 0.0078
    )
    for label in range(3):
        images = x_0[component == label]
        error = 4 * 0.3 / len(images) ** 0.5
        torch.testing.assert_close(images.mean(0), mixture.means[label].float(), rtol=0, atol=error + 0.005)
        # 500 steps narrow a mode of .3 by about .01
        torch.testing.assert_close(images.std(0), torch.tensor([0.3, 0.3]), rtol=0, atol=error + 0.012)


# -------------------------------------------------------------------------------------------------- network or pair


@pytest.mark.parametrize(
    "guidance",
    [Unguided(), NegativePrompting(), SafeLatentDiffusion(), DynamicNegativeGuidance(prior=0.2)],
    ids=lambda guidance: type(guidance).__name__,
)
def test_a_shared_network_and_a_pair_that_hold_the_same_function_give_the_same_images(guidance):
    def images(predictor: Predictor) -> Tensor:
        return sample(predictor, guidance, LINEAR, BatchNoise((64, 2)), Sampler(100))

    # exact functions whose batches are stacked differently; 64 images keep SIMD lanes full
    assert torch.equal(images(FOUR.shared([0, 2])), images(FOUR.pair([0, 2])))


def test_predictors_give_base_and_negatives_in_the_order_of_the_forbidden_classes():
    x_t, t = BatchNoise((5, 2))(), torch.full((5,), 300)
    for predictor in (FOUR.shared([3, 1]), FOUR.pair([3, 1])):
        made = predictor.predict(x_t, 300)
        assert predictor.classes == 2
        torch.testing.assert_close(made.base, FOUR.eps(x_t, t), rtol=0, atol=1e-6)
        for k, label in enumerate((3, 1)):
            torch.testing.assert_close(made.negatives[:, k], FOUR.network(label)(x_t, t, None), rtol=0, atol=1e-6)


@pytest.mark.parametrize("forbidden", [[3, 1], [2]], ids=["two classes", "one class"])
def test_a_posterior_comes_with_the_predictions_at_their_level_in_the_order_of_the_forbidden_classes(forbidden):
    x_t = BatchNoise((5, 2))()
    for predictor in (FOUR.shared(forbidden), FOUR.pair(forbidden)):
        bare, informed = predictor.predict(x_t, 300), WithPosterior(predictor, FOUR.log_posterior, forbidden)
        made = informed.predict(x_t, 300, Needs(posterior=True))
        assert bare.log_posterior is None
        assert torch.equal(made.base, bare.base)
        assert torch.equal(made.negatives, bare.negatives)
        assert made.log_posterior is not None
        torch.testing.assert_close(made.log_posterior.exp(), FOUR.posterior(x_t, 300, forbidden))
        other = informed.predict(x_t, 100, Needs(posterior=True)).log_posterior
        assert not torch.allclose(made.log_posterior, other)
        assert informed.predict(x_t, 300, Needs(negatives=False)).log_posterior is None
        assert informed.classes == len(forbidden)
        # of the denoising networks: the bare one, two with all negatives, one without; none for the classifier
        assert informed.evaluations == predictor.evaluations == 5 * (3 * (1 + len(forbidden)) + 1)


def test_only_the_active_conditions_of_each_image_are_evaluated():
    x_t, active = BatchNoise((5, 2))(), torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1], [0, 0]]).bool()
    for predictor in (FOUR.shared([3, 1]), FOUR.pair([3, 1])):
        full, spared = predictor.predict(x_t, 300), predictor.predict(x_t, 300, Needs(active=active))
        expected = torch.where(active.unsqueeze(2), full.negatives, full.base.unsqueeze(1))
        torch.testing.assert_close(spared.negatives, expected, rtol=0, atol=1e-6)
        assert predictor.evaluations == 5 * 3 + 5 + 4
        none = predictor.predict(x_t, 300, Needs(active=torch.zeros_like(active)))
        assert none.negatives.shape == full.negatives.shape
        assert predictor.evaluations == 5 * 3 + 5 + 4 + 5


def test_the_unconditional_prediction_comes_beside_a_wanted_one_and_is_not_evaluated_twice():
    x_t, wanted = BatchNoise((5, 2))(), torch.tensor([0, 1, 2, 3, 0])
    both = FOUR.shared([3]).predict(x_t, 300, Needs(null=True), wanted)
    torch.testing.assert_close(both.base, FOUR.eps(x_t, torch.full((5,), 300), wanted), rtol=0, atol=1e-6)
    assert both.null is not None
    torch.testing.assert_close(both.null, FOUR.eps(x_t, torch.full((5,), 300)), rtol=0, atol=1e-6)
    alone = (shared := FOUR.shared([3])).predict(x_t, 300, Needs(null=True))
    assert alone.null is not None
    assert torch.equal(alone.null, alone.base)
    assert shared.evaluations == 10
    assert FOUR.shared([3]).predict(x_t, 300, wanted=wanted).null is None


def test_the_gradient_of_the_posterior_is_the_difference_of_the_scores():
    x_t, t, wanted = BatchNoise((5, 2))(), 300, torch.tensor([0, 1, 2, 3, 0])
    made = WithPosterior(FOUR.shared([3, 1]), FOUR.log_posterior, [3, 1]).predict(x_t, t, Needs(gradient=True), wanted)
    null = FOUR.eps(x_t, torch.full((5,), t))
    assert made.gradient is not None
    assert made.wanted_gradient is not None
    score = -(made.negatives - null.unsqueeze(1)) / float(LINEAR.sigma[t])
    torch.testing.assert_close(made.gradient, score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.wanted_gradient, -(made.base - null) / float(LINEAR.sigma[t]), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        again = WithPosterior(FOUR.shared([3, 1]), FOUR.log_posterior, [3, 1]).predict(
            BatchNoise((5, 2))(), t, Needs(gradient=True), wanted
        )
    assert torch.equal(again.gradient, made.gradient)


def test_a_posterior_of_other_classes_than_the_forbidden_ones_is_refused():
    with pytest.raises(SettingError, match="has 2 forbidden conditions, not 1"):
        WithPosterior(FOUR.shared([0, 2]), FOUR.log_posterior, [0])


def test_evaluations_are_counted_image_by_image_and_unguided_sampling_needs_no_negatives():
    for predictor in (FOUR.shared([0, 2]), FOUR.pair([0, 2])):
        sample(predictor, Unguided(), LINEAR, BatchNoise((5, 2)), Sampler(10))
        assert predictor.evaluations == 5 * 10
        sample(predictor, NegativePrompting(), LINEAR, BatchNoise((5, 2)), Sampler(10))
        assert predictor.evaluations == 5 * 10 + 3 * 5 * 10


# ------------------------------------------------------------------------------------------------- what a step does


class Watching(Guidance):
    """Unguided, but sees all predictions; keeps what it is shown."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.states: list[tuple[Tensor, Tensor]] = []

    def start(self, x_T: Tensor, classes: int) -> int:
        return classes

    def guide(self, predictions, state, step) -> Guided:
        assert predictions.negatives.shape[1] == state
        return Guided(predictions.base, predictions.base.new_zeros(len(predictions.base)))

    def observe(self, state, step, x_t, x_s, predictions) -> int:
        self.steps.append(step)
        self.states.append((x_t, x_s))
        return state


@pytest.mark.parametrize(
    "sampler",
    [Sampler(7), Sampler(7, eta=0.0), Sampler(7, eta=0.5), Sampler(7, variance="beta"), Sampler(7, clip=0.8)],
    ids=["ancestral", "DDIM", "between", "larger variance", "clipped"],
)
def test_a_guidance_sees_every_step_and_the_ancestral_kernel_with_the_samplers_variance_and_clip(sampler):
    guidance = Watching()
    run = trajectory(FOUR, guidance, [0, 2], sampler, BatchNoise((4, 2)))
    assert run.levels == LINEAR.levels(7)
    assert [(step.index, step.count, step.t, step.s) for step in guidance.steps] == [
        (index, 7, t, s) for index, (t, s) in enumerate(pairwise(run.levels))
    ]
    for step in guidance.steps:
        assert step.transition == LINEAR.transition(step.t, step.s, variance=sampler.variance, clip=sampler.clip)
    for (x_t, x_s), (before, after) in zip(guidance.states, pairwise(run.x), strict=True):
        assert torch.equal(x_t, before)
        assert torch.equal(x_s, after)


@pytest.mark.parametrize(("eta", "draws"), [(0.0, 1), (0.5, 10), (1.0, 10)])
def test_noise_is_drawn_for_the_start_and_each_step_but_the_last_and_never_for_ddim(eta, draws):
    noise, count = BatchNoise((4, 2)), []

    def counted() -> Tensor:
        count.append(1)
        return noise()

    sample(FOUR.shared([0]), Unguided(), LINEAR, counted, Sampler(10, eta=eta))
    assert len(count) == draws


def test_the_chain_starts_with_the_noise_of_the_noisiest_level_and_ends_with_the_denoised_prediction():
    schedule = PATHS["variance exploding"]
    mixture = GaussianMixture(schedule, [[-1.5, 0.0], [1.5, 0.0]], 0.3)
    run = trajectory(mixture, Unguided(), [0], Sampler(10), BatchNoise((8, 2)))
    torch.testing.assert_close(run.x[0], 100 * BatchNoise((8, 2))())
    last = run.levels[-2]
    x0_hat = schedule.transition(last, 0).x0_hat(run.x[-2], mixture.eps(run.x[-2], torch.full((8,), last)))
    torch.testing.assert_close(run.x_0, x0_hat)


def test_the_clip_holds_for_the_posterior_as_for_the_images():
    # two points outside the clip: clipped, both predict the same image, so there is nothing to tell them apart by
    points = GaussianMixture(LINEAR, [[-3.0, -3.0], [-2.0, -4.0]], 0.0)
    predictor = points.pair([1])
    predictor.base = points.network(0)
    guidance = DynamicNegativeGuidance(prior=0.3)
    for clip, moves in ((1.0, False), (10.0, True)):
        seen: list[Tensor] = []
        x_0 = sample(
            predictor,
            guidance,
            LINEAR,
            BatchNoise((32, 2)),
            Sampler(50, clip=clip),
            on_step=lambda step, guided, x, seen=seen: seen.append(guided.posterior),
        )
        # fp32 predictions of -2 and less, 1 / alpha_T = 157 times coarser, are all the same beyond the clip
        assert bool((torch.stack(seen) - 0.3).abs().max() > 1e-9) == moves
        assert x_0.abs().max() <= clip


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_the_posterior_is_taken_from_the_same_clipped_mean_as_the_images(variance):
    clip, prior = 0.8, 0.25
    sampler = Sampler(40, variance=variance, clip=clip)
    run = trajectory(FOUR, DynamicNegativeGuidance(prior=prior), [0], sampler, BatchNoise((16, 2)))
    tracker, predictor = PosteriorTracker(prior), FOUR.shared([0])
    log_p = tracker.start(16, 1, torch.device("cpu"))
    clipped = 0
    for index, ((x_t, x_s), (t, s)) in enumerate(zip(pairwise(run.x), pairwise(run.levels), strict=True)):
        torch.testing.assert_close(run.posterior[index], log_p.exp(), rtol=1e-6, atol=0)
        made = predictor.predict(x_t, t)
        step = LINEAR.transition(t, s, variance=variance, clip=clip)
        clipped += int((step.x0_hat(x_t, made.base).abs() == clip).sum())
        log_p = tracker.update(log_p, step, x_t, x_s, made.base, made.negatives)
    assert clipped > 100


def test_sampling_keeps_no_gradients():
    weight = torch.ones(1, requires_grad=True)
    predictor = ClassConditionalPredictor(lambda x, t, labels: weight * x, 10, [0])
    x_0 = sample(predictor, DynamicNegativeGuidance(), LINEAR, BatchNoise((2, 1, 4, 4)), Sampler(3))
    assert not x_0.requires_grad


def test_mixed_precision_is_for_the_networks_and_not_for_the_guidance():
    class Multiplies(Unguided):
        """Notes what comes of a product of matrices, which mixed precision would round to bfloat16."""

        def guide(self, predictions, state, step):
            products.append((ones @ ones).dtype)
            return super().guide(predictions, state, step)

        def observe(self, state, step, x_t, x_s, predictions):
            products.append((ones @ ones).dtype)

    ones, products = torch.ones(1, 1), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        draw(TWO, Multiplies(), [0], Sampler(steps=3))
        assert (ones @ ones).dtype == torch.bfloat16
    assert products == [torch.float32] * 6


def test_a_hundred_ancestral_steps_are_the_default():
    run = [
        sample(FOUR.shared([0]), Unguided(), LINEAR, BatchNoise((8, 2)), sampler)
        for sampler in (None, Sampler(steps=100, eta=1.0))
    ]
    assert torch.equal(*run)


# ------------------------------------------------------------------------------------------------------------ noise


SHAPES = [(2,), (1, 3, 5), (1, 28, 28), (3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_draws_of_an_image_depend_on_its_seed_alone(shape):
    seeds = [3, 0, 41, 2**31, 7]
    together = ImageNoise(seeds, shape)
    draws = [together() for _ in range(4)]
    assert all(draw.shape == (5, *shape) for draw in draws)
    for others in ([3], [41, 3], [3, 3], [*range(20, 40), 3]):
        again = ImageNoise(others, shape)
        for draw in draws:
            now = again()
            assert torch.equal(now[others.index(3)], draw[0])
            if others.count(3) == 2:
                assert torch.equal(now[0], now[1])
    reversed_draws = ImageNoise(seeds[::-1], shape)
    assert all(torch.equal(reversed_draws().flip(0), draw) for draw in draws)


def test_the_draws_do_not_touch_and_are_not_touched_by_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = ImageNoise([1, 2], (1, 4, 4))()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(ImageNoise([1, 2], (1, 4, 4))(), first)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_the_draws_of_consecutive_seeds_are_standard_normal_and_unrelated(shape):
    count = 4000
    noise = ImageNoise(range(count), shape)
    first, second = (noise().flatten(1).double() for _ in range(2))
    # 5 standard errors: the largest of at most 64 means, variances or correlations is under 4 with a chance of 99.6 %
    bound = 5 / count**0.5
    for draws in (first, second):
        assert draws.mean(0).abs().max() < bound
        assert (draws.var(0) - 1).abs().max() < bound * 2**0.5
        assert (draws[1:] * draws[:-1]).mean(0).abs().max() < bound  # seed i with seed i + 1
        assert (draws[:, 1:] * draws[:, :-1]).mean(0).abs().max() < bound  # a number with the next
    assert (first * second).mean(0).abs().max() < bound  # a draw with the next


@pytest.mark.parametrize("sampler", [Sampler(50), Sampler(50, eta=0.0)], ids=["ancestral", "DDIM"])
def test_the_same_batch_gives_bit_identical_images_and_another_batch_the_same_to_rounding(sampler):
    def images(seeds: list[int]) -> Tensor:
        return sample(FOUR.shared([0]), DynamicNegativeGuidance(), LINEAR, ImageNoise(seeds, (2,)), sampler)

    seeds = list(range(37))
    whole = images(seeds)
    assert torch.equal(images(seeds), whole)
    parts = torch.cat([images(seeds[:5]), images(seeds[5:6]), images(seeds[6:])])
    # sums and SIMD tails may round differently; 50 steps near the border of two modes amplify 1e-7 a hundredfold
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(images(seeds[::-1]).flip(0), whole, rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"eta": -0.1}, "eta must be between 0 and 1"),
        ({"eta": 1.1}, "eta must be between 0 and 1"),
        ({"eta": math.nan}, "eta must be between 0 and 1"),
        ({"variance": "learned"}, "variance must be beta_tilde or beta"),
        ({"variance": "beta", "eta": 0.5}, "variance beta goes with eta 1 only"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"clip": -1.0}, "clip must be positive"),
        ({"clip": math.nan}, "clip must be positive"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(setting, reason):
    with pytest.raises(SettingError, match=reason):
        Sampler(**setting)


@pytest.mark.parametrize(
    ("guidance", "steps"),
    [
        (Unguided(), 1001),
        (DynamicNegativeGuidance(prior=0.6), 10),
        (DynamicNegativeGuidance(prior=[0.1, 0.1, 0.1]), 10),
        (OracleNegativeGuidance(), 10),
    ],
    ids=["more steps than levels", "priors that sum to more than the cap", "more priors than classes", "no posterior"],
)
def test_what_does_not_fit_together_is_refused_before_any_network_is_called(guidance, steps):
    predictor = FOUR.shared([0, 2])
    with pytest.raises(SettingError):
        sample(predictor, guidance, LINEAR, BatchNoise((4, 2)), Sampler(steps))
    assert predictor.evaluations == 0
