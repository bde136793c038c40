"""What a step of the reverse chain does, and what is refused before the first one."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, Trajectory, trajectory
from torch import Tensor
from tracking import advance

from dng_lightning.errors import SettingError
from dng_lightning.guidance import CFGPlusPlus, DynamicNegativeGuidance, Guidance, NegativePrompting, Unguided
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.kernel import Kernel
from dng_lightning.posterior import ClassifierPosterior, TrackedPosterior
from dng_lightning.sampling import ClassConditionalPredictor, Sampler, sample
from dng_lightning.schedule import LinearSchedule, NoiseSchedule, RectifiedFlowSchedule

LINEAR = LinearSchedule()
TWO = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0]], 0.3)
FOUR = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], 0.3, [0.1, 0.4, 0.2, 0.3])
SAMPLERS = {
    "ancestral": Sampler(7),
    "DDIM": Sampler(7, eta=0.0),
    "between": Sampler(7, eta=0.5),
    "larger variance": Sampler(7, variance="beta"),
    "clipped": Sampler(7, clip=0.8),
    "between, clipped": Sampler(7, eta=0.5, clip=0.8),
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


class Noting(Guidance):
    """Unguided, but sees all predictions; keeps what it is shown."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.states: list[tuple[Tensor, Tensor]] = []
        self.guided: list[tuple[Guided, Guided]] = []

    def start(self, x_T: Tensor, conditions: int) -> int:
        return conditions

    def guide(self, predictions: Predictions, state: int, step: Step) -> Guided:
        assert predictions.negatives.shape[1] == state
        self.made = Guided(predictions.denoised, predictions.denoised.new_zeros(len(predictions.denoised)))
        return self.made

    def update(self, state: int, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> int:
        self.steps.append(step)
        self.states.append((x_t, x_s))
        self.guided.append((guided, self.made))
        return state


@each_sampler
def test_a_guidance_sees_every_step_and_the_ancestral_kernel_with_the_samplers_variance_and_clip(sampler):
    guidance = Noting()
    run = trajectory(FOUR, guidance, [0, 2], sampler, BatchNoise((4, 2)))
    assert run.levels == LINEAR.levels(7)
    assert [(step.index, step.count, step.level, step.next_level) for step in guidance.steps] == [
        (index, 7, t, s) for index, (t, s) in enumerate(pairwise(run.levels))
    ]
    for step in guidance.steps:
        assert step.kernel == Kernel(step.level, step.next_level, 1.0, sampler.variance, sampler.clip)
        assert step.eta == sampler.eta
    for (x_t, x_s), (before, after) in zip(guidance.states, pairwise(run.x), strict=True):
        assert torch.equal(x_t, before)
        assert torch.equal(x_s, after)
    assert all(given is made for given, made in guidance.guided)


@each_sampler
def test_what_is_drawn_from_is_the_kernel_of_the_evidence_at_eta_1_and_one_of_the_samplers_eta_below(sampler):
    for step in sampler.chain(LINEAR):
        if sampler.eta == 1:
            assert step.sampling_kernel is step.kernel
        else:
            assert step.sampling_kernel == Kernel(step.level, step.next_level, sampler.eta, clip=sampler.clip)
            assert step.kernel == Kernel(step.level, step.next_level, 1.0, clip=sampler.clip)


@each_sampler
def test_a_step_is_the_mean_of_the_guided_prediction_and_the_noise_of_its_kernel(sampler):
    guidance, noise = NegativePrompting(0.5), BatchNoise((4, 2))
    run, draws = trajectory(FOUR, guidance, [0], sampler, noise), BatchNoise((4, 2))
    assert torch.equal(run.x[0], float(LINEAR.sigma[-1]) * draws())
    for step, guided, (x_t, x_s) in zip(run.steps, run.guided, pairwise(run.x), strict=True):
        expected = step.sampling_kernel.mean(x_t, guided.denoised)
        assert torch.equal(x_s, expected + step.sampling_kernel.std * draws() if step.sampling_kernel.std else expected)


def test_a_guidance_may_go_on_with_the_noise_of_another_prediction():
    run = trajectory(FOUR, CFGPlusPlus(0.5), [], Sampler(7, eta=0.0), BatchNoise((4, 2)), 1)
    for step, made, guided, (x_t, x_s) in zip(run.steps, run.predictions, run.guided, pairwise(run.x), strict=True):
        eps = (x_t - step.level.alpha * made.null) / step.level.sigma
        expected = step.next_level.alpha * guided.denoised + step.next_level.sigma * eps
        torch.testing.assert_close(x_s, expected, rtol=0, atol=1e-4)  # D is up to 157 times coarser than x_t


@pytest.mark.parametrize(("eta", "draws"), [(0.0, 1), (0.5, 10), (1.0, 10)])
def test_noise_is_drawn_for_the_start_and_each_step_but_the_last_and_never_for_ddim(eta, draws):
    noise, count = BatchNoise((4, 2)), []

    def counted() -> Tensor:
        count.append(1)
        return noise()

    sample(FOUR.shared([0]), Unguided(), LINEAR, counted, Sampler(10, eta=eta))
    assert len(count) == draws


@pytest.mark.parametrize(
    ("schedule", "sigma"),
    [
        (NoiseSchedule(torch.ones(1000), torch.logspace(-2, 2, 1000, dtype=torch.double)), 100),
        (RectifiedFlowSchedule(), 1),
    ],
    ids=["variance exploding", "rectified flow from pure noise"],
)
def test_the_chain_starts_with_the_noise_of_the_noisiest_level_and_ends_with_the_denoised_prediction(schedule, sigma):
    mixture = GaussianMixture(schedule, [[-1.5, 0.0], [1.5, 0.0]], 0.3)
    run = trajectory(mixture, Unguided(), [0], Sampler(10), BatchNoise((8, 2)))
    torch.testing.assert_close(run.x[0], sigma * BatchNoise((8, 2))())
    torch.testing.assert_close(run.x_0, mixture.denoised(run.x[-2], run.levels[-2]))


# --- the clip ---


def test_the_clip_holds_for_the_posterior_as_for_the_images():
    # two points outside the clip: clipped, both predict the same image, so there is nothing to tell them apart by
    points = GaussianMixture(LINEAR, [[-3.0, -3.0], [-2.0, -4.0]], 0.0)
    predictor = points.pair([1])
    predictor.base = points.network(0)
    guidance = DynamicNegativeGuidance(posterior=TrackedPosterior(prior=0.3))
    for clip, moves in ((1.0, False), (10.0, True)):
        seen = Trajectory()
        x_0 = sample(predictor, guidance, LINEAR, BatchNoise((32, 2)), Sampler(50, clip=clip), [seen])
        # predictions of -2 and less are all the same beyond the clip
        assert bool((seen.posterior - 0.3).abs().max() > 1e-9) == moves
        assert x_0.abs().max() <= clip


@pytest.mark.parametrize("kind", ["beta_tilde", "beta"])
def test_the_posterior_is_taken_from_the_same_clipped_mean_as_the_images(kind):
    clip, posterior = 0.8, TrackedPosterior(prior=0.25)
    sampler = Sampler(40, variance=kind, clip=clip)
    run = trajectory(FOUR, DynamicNegativeGuidance(posterior=posterior), [0], sampler, BatchNoise((16, 2)))
    predictor, log_p = FOUR.shared([0]), posterior.start(run.x[0], 1)
    clipped = 0
    for index, (step, (x_t, x_s)) in enumerate(zip(run.steps, pairwise(run.x), strict=True)):
        torch.testing.assert_close(run.posterior[index], log_p.exp(), rtol=1e-6, atol=0)
        made = predictor.predict(x_t, step.level)
        clipped += int((step.kernel.clipped(made.denoised).abs() == clip).sum())
        log_p = advance(posterior, log_p, step, x_t, x_s, made)
    assert clipped > 100


# --- precision and gradients ---


def test_sampling_keeps_no_gradients():
    weight = torch.ones(1, requires_grad=True)
    predictor = ClassConditionalPredictor(lambda x, level, labels: weight * x, 10, [0])
    x_0 = sample(predictor, DynamicNegativeGuidance(), LINEAR, BatchNoise((2, 1, 4, 4)), Sampler(3))
    assert not x_0.requires_grad


def test_mixed_precision_is_for_the_networks_and_not_for_the_guidance():
    class Multiplies(Unguided):
        """Notes what comes of a product of matrices, which mixed precision would round to bfloat16."""

        def guide(self, predictions: Predictions, state: None, step: Step) -> Guided:
            products.append((ones @ ones).dtype)
            return super().guide(predictions, state, step)

        def update(self, state: None, *after: Any) -> None:
            products.append((ones @ ones).dtype)

    def denoiser(*given: Any) -> Tensor:
        networks.append((ones @ ones).dtype)
        return TWO.denoised(*given)

    ones, products, networks = torch.ones(1, 1), [], []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictor = ClassConditionalPredictor(denoiser, TWO.null_class, [0])
        sample(predictor, Multiplies(), LINEAR, BatchNoise((4, 2)), Sampler(steps=3))
    assert products == [torch.float32] * 6
    assert networks == [torch.bfloat16] * 3


def test_a_hundred_ancestral_steps_are_the_default():
    run = [
        sample(FOUR.shared([0]), Unguided(), LINEAR, BatchNoise((8, 2)), sampler)
        for sampler in (None, Sampler(steps=100, eta=1.0))
    ]
    assert torch.equal(*run)


# --- errors ---


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"eta": -0.1}, "eta must be in .0, 1."),
        ({"eta": 1.1}, "eta must be in .0, 1."),
        ({"eta": math.nan}, "eta must be in .0, 1."),
        ({"variance": "learned"}, "variance must be beta_tilde or beta"),
        ({"variance": "beta", "eta": 0.5}, "variance beta needs eta 1"),
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
        (DynamicNegativeGuidance(posterior=TrackedPosterior(prior=0.6)), 10),
        (DynamicNegativeGuidance(posterior=TrackedPosterior(prior=[0.1, 0.1, 0.1])), 10),
        (DynamicNegativeGuidance(posterior=ClassifierPosterior()), 10),
    ],
    ids=["more steps than levels", "priors that sum to more than p_max", "more priors than classes", "no classifier"],
)
def test_what_does_not_fit_together_is_refused_before_any_network_is_called(guidance, steps):
    predictor = FOUR.shared([0, 2])
    with pytest.raises(SettingError):
        sample(predictor, guidance, LINEAR, BatchNoise((4, 2)), Sampler(steps))
    assert predictor.nfe == 0


# --- needs ---


def test_the_needs_of_two_are_what_both_of_them_need():
    active = torch.ones(1, 1, dtype=torch.bool)
    one = Needs(negatives=True, classifier="posterior", tracks=True, divergence=0)
    other = Needs(null=True, class_labels=True, classifier="gradient", observer=2.0, divergence=2, active=active)
    expected = Needs(True, True, True, "gradient", 2.0, None, True, 2, active)
    assert one | other == expected
    assert other | one == expected
    assert (Needs() | Needs()) == Needs()
    assert (Needs(divergence=0) | Needs()).divergence == 0
