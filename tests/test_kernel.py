"""The kernels between any two levels of any path are Gaussian conditioning, and their steps are diffusers'."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dng_lightning.kernel import Kernel, NoiseLevel, Variance
from dng_lightning.parametrization import denoised_of
from dng_lightning.schedule import CosineSchedule, KarrasSchedule, LinearSchedule, NoiseSchedule, RectifiedFlowSchedule

T = 1000
# fp64 throughout: a step is a handful of operations on numbers of order 1, so what is left is a few times 2e-16,
# enlarged by at most 1 / alpha_T = 157 of the linear schedule
ROUNDING = 1e-12

PATHS = {
    "linear": LinearSchedule(),
    "linear-40": LinearSchedule(40, 1e-3, 0.3),
    "cosine": CosineSchedule(),
    "variance exploding": KarrasSchedule(40),
    "rectified flow": RectifiedFlowSchedule(40, 40 / 41),
    "rectified flow from pure noise": RectifiedFlowSchedule(40),
}


def kernel_of(
    schedule: NoiseSchedule,
    t: int,
    s: int,
    eta: float = 1.0,
    kind: Variance = "beta_tilde",
    clip: float | None = None,
) -> Kernel:
    """The kernel between two levels, given by their numbers."""
    return Kernel(schedule.level(t), schedule.level(s), eta, kind, clip)


@st.composite
def levels_of_a_path(draw: st.DrawFn, count: int = 2) -> tuple[NoiseSchedule, list[int]]:
    """A path and ``count`` of its levels, from noisy to clean; the cleanest may be the data."""
    schedule = PATHS[draw(st.sampled_from(sorted(PATHS)))]
    levels = st.lists(st.integers(0, schedule.T), min_size=count, max_size=count, unique=True)
    return schedule, sorted(draw(levels), reverse=True)


@pytest.fixture
def x_t() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def eps() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def denoised(x_t: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """The denoised prediction that goes with ``eps``."""
    return denoised_of(eps, x_t, level.alpha, level.sigma, "eps")


def with_our_table(scheduler: DDPMScheduler | DDIMScheduler, schedule: NoiseSchedule):
    """diffusers keeps its tables in fp32, which would hide all but the coarsest mistake in a step."""
    scheduler.alphas_cumprod = schedule.alpha[1:] ** 2
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.double)
    return scheduler


# --- coefficients ---


def test_consecutive_levels_have_the_kernel_of_ddpm():
    schedule = LinearSchedule()
    alpha_bar = schedule.alpha**2
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.double)
    for t in range(1, T + 1):
        kernel = kernel_of(schedule, t, t - 1)
        # Ho et al. (2020), eq. 7
        variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t - 1]
        x0_coef = alpha_bar[t - 1].sqrt() * beta[t - 1] / (1 - alpha_bar[t])
        x_coef = (1 - beta[t - 1]).sqrt() * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        # betas of 1e-4 come out of differences of numbers near 1: 1e-16 / 1e-4
        assert kernel.variance == pytest.approx(float(variance), rel=1e-11, abs=1e-15)
        assert kernel.x0_coef == pytest.approx(float(x0_coef), rel=1e-11)
        assert kernel.x_coef == pytest.approx(float(x_coef), rel=1e-11, abs=1e-15)


def test_the_ancestral_mean_is_the_update_of_ddpm(x_t, eps):
    schedule = LinearSchedule()
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.double)
    for t in (1, 2, 10, 500, T):
        # Ho et al., algorithm 2
        mean = (x_t - beta[t - 1] / schedule.sigma[t] * eps) / (1 - beta[t - 1]).sqrt()
        found = kernel_of(schedule, t, t - 1).mean(x_t, denoised(x_t, eps, schedule.level(t)))
        torch.testing.assert_close(found, mean, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("t", "ratio"), [(1, 0.455), (2, 0.61), (5, 0.78), (10, 0.86), (20, 0.92), (50, 0.965), (100, 0.982)]
)
def test_beta_is_larger_than_beta_tilde_by_the_known_ratio(t, ratio):
    kernel = kernel_of(LinearSchedule(), t + 1, t, kind="beta")
    assert kernel.beta_tilde / kernel.variance == pytest.approx(ratio, abs=0.005)  # given to two or three digits


@given(levels_of_a_path())
@settings(max_examples=200, deadline=None)
def test_the_kernel_is_gaussian_conditioning_on_any_path(path):
    schedule, (t, s) = path
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()
    # x_s = alpha_s x_0 + sigma_s n,  x_t = a x_s + noise of the variance that brings x_t to sigma_t^2
    a = alpha[t] / alpha[s]
    joint = np.array([[sigma[s] ** 2, a * sigma[s] ** 2], [a * sigma[s] ** 2, sigma[t] ** 2]])
    gain = joint[0, 1] / joint[1, 1]
    kernel = kernel_of(schedule, t, s)
    # x_coef is the root of a difference of numbers near sigma_s^2: where it is 1e-6 and less, it is good to 1e-12
    assert kernel.x_coef == pytest.approx(gain, rel=1e-7, abs=1e-11)
    assert kernel.x0_coef == pytest.approx(alpha[s] - gain * alpha[t], rel=1e-9, abs=1e-11)
    assert kernel.variance == pytest.approx(joint[0, 0] - gain * joint[1, 0], rel=1e-9, abs=1e-12 * sigma[s] ** 2)
    assert kernel.beta_tilde == kernel.variance
    assert kernel.std == math.sqrt(kernel.variance)
    assert kernel.span == t - s


@pytest.mark.parametrize(
    ("path", "t", "s"),
    [
        ("variance exploding", 30, 11),
        ("variance exploding", 40, 1),
        ("rectified flow", 39, 7),
        ("rectified flow from pure noise", 40, 7),
    ],
)
def test_the_kernel_has_the_closed_form_of_its_path(path, t, s):
    schedule = PATHS[path]
    kernel = kernel_of(schedule, t, s)
    sigma_t, sigma_s = float(schedule.sigma[t]), float(schedule.sigma[s])
    if path == "variance exploding":
        a = sigma_s**2 / sigma_t**2
        b, variance = 1 - a, (sigma_t**2 - sigma_s**2) * sigma_s**2 / sigma_t**2
    else:
        ratio = (1 - sigma_t) / (1 - sigma_s)
        var_ts = sigma_t**2 - ratio**2 * sigma_s**2
        a, b = ratio * sigma_s**2 / sigma_t**2, (1 - sigma_s) * var_ts / sigma_t**2
        variance = var_ts * sigma_s**2 / sigma_t**2
    # at sigma_t / sigma_s = 40,000 a is 6e-10, from a difference of numbers near sigma_s^2 = 4e-6
    assert kernel.x_coef == pytest.approx(a, rel=1e-6)
    assert kernel.x0_coef == pytest.approx(b, rel=1e-9)
    assert kernel.variance == pytest.approx(variance, rel=1e-9)


@given(levels_of_a_path(3))
@settings(max_examples=200, deadline=None)
def test_two_kernels_in_a_row_are_one(path):
    schedule, levels = path
    (first, second), both = (kernel_of(schedule, *pair) for pair in pairwise(levels)), kernel_of(schedule, *levels[::2])
    # x_r = second.x_coef x_s + second.x0_coef x_0 + noise, and x_s = first.x_coef x_t + first.x0_coef x_0 + noise
    # as above: the root of a difference of numbers near sigma^2
    assert second.x_coef * first.x_coef == pytest.approx(both.x_coef, rel=1e-7, abs=1e-11)
    assert second.x_coef * first.x0_coef + second.x0_coef == pytest.approx(both.x0_coef, rel=1e-9, abs=1e-11)
    assert second.x_coef**2 * first.variance + second.variance == pytest.approx(both.variance, rel=1e-9, abs=1e-14)


@given(levels_of_a_path(), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_every_eta_keeps_the_marginals(path, eta):
    schedule, (t, s) = path
    kernel = kernel_of(schedule, t, s, eta=eta)
    alpha, sigma = schedule.alpha, schedule.sigma
    assert kernel.x_coef * alpha[t] + kernel.x0_coef == pytest.approx(float(alpha[s]), rel=1e-9)
    variance = kernel.x_coef**2 * sigma[t] ** 2 + kernel.variance
    assert float(variance) == pytest.approx(float(sigma[s] ** 2), rel=1e-9, abs=1e-15)
    assert kernel.variance == pytest.approx(eta**2 * kernel.beta_tilde, rel=1e-12)


@pytest.mark.parametrize("path", sorted(PATHS))
def test_the_last_step_and_ddim_draw_no_noise(path):
    schedule = PATHS[path]
    for kind in ("beta_tilde", "beta"):
        last = kernel_of(schedule, schedule.T // 2, 0, kind=kind)
        assert (last.variance, last.std, last.x_coef, last.x0_coef) == (0, 0, 0, 1)
    assert kernel_of(schedule, schedule.T, 1, eta=0).variance == 0


@pytest.mark.parametrize("path", sorted(PATHS))
def test_the_larger_variance_is_that_of_the_forward_step_and_leaves_the_mean(path):
    schedule = PATHS[path]
    t, s = schedule.T, schedule.T // 2
    small, large = kernel_of(schedule, t, s), kernel_of(schedule, t, s, kind="beta")
    forward = schedule.sigma[t] ** 2 - (schedule.alpha[t] / schedule.alpha[s] * schedule.sigma[s]) ** 2
    assert large.variance == pytest.approx(float(forward), rel=1e-12)
    assert large.variance >= small.variance == large.beta_tilde
    assert (large.x_coef, large.x0_coef) == (small.x_coef, small.x0_coef)


# --- means ---


def test_the_clip_bounds_the_denoised_prediction_and_the_mean_uses_it(x_t, eps):
    free, clipped = (kernel_of(LinearSchedule(), 700, 500, clip=clip) for clip in (None, 0.5))
    prediction = denoised(x_t, eps, free.level)
    assert prediction.abs().max() > 0.5
    assert free.clipped(prediction) is prediction
    bounded = prediction.clamp(-0.5, 0.5)
    assert torch.equal(clipped.clipped(prediction), bounded)
    assert torch.equal(clipped.mean(x_t, prediction), clipped.x_coef * x_t + clipped.x0_coef * bounded)


@given(levels_of_a_path(), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_mean_is_the_next_levels_mixture_of_the_denoised_prediction_and_its_noise(path, eta):
    """x_s = alpha_s D + sqrt(sigma_s^2 - w^2) eps + w z; from pure noise as well."""
    schedule, (t, s) = path
    kernel = kernel_of(schedule, t, s, eta=eta)
    x_t, prediction = torch.randn(2, 4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(t))
    eps = (x_t - kernel.level.alpha * prediction) / kernel.level.sigma
    root = math.sqrt(max(kernel.next_level.sigma**2 - kernel.variance, 0.0))
    expected = kernel.next_level.alpha * prediction + root * eps
    # the root of a difference of numbers near sigma_s^2, as above, times an eps of up to 1 / sigma_t
    size = max(1.0, kernel.next_level.sigma) * max(1.0, 1 / kernel.level.sigma)
    torch.testing.assert_close(kernel.mean(x_t, prediction), expected, rtol=0, atol=1e-10 * size)


@given(levels_of_a_path(), st.sampled_from(["beta_tilde", "beta"]))
def test_two_means_differ_by_x0_coef_times_the_difference_of_the_predictions(path, kind):
    schedule, (t, s) = path
    kernel = kernel_of(schedule, t, s, kind=kind)
    x_t, prediction, by = torch.randn(3, 4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(t))
    moved = kernel.mean(x_t, prediction + by) - kernel.mean(x_t, prediction)
    torch.testing.assert_close(moved, kernel.x0_coef * by, rtol=0, atol=ROUNDING)
    assert kernel.x0_coef > 0


def test_noise_that_goes_back_may_be_another_than_the_one_taken_out():
    """DDIM's form of the mean: alpha_s D + sqrt(sigma_s^2 - variance) renoise, at any eta (CFG++)."""
    schedule, (x_t, eps, other) = LinearSchedule(), torch.randn(3, 4, 1, 2, 2).unbind()
    for eta in (0.0, 0.5, 1.0):
        kernel = kernel_of(schedule, 500, 460, eta=eta)
        prediction = denoised(x_t, eps, kernel.level)
        back = (float(schedule.sigma[460]) ** 2 - kernel.variance) ** 0.5
        expected = float(schedule.alpha[460]) * prediction + back * other
        renoise = denoised(x_t, other, kernel.level)
        torch.testing.assert_close(kernel.mean(x_t, prediction, renoise=renoise), expected)
        torch.testing.assert_close(kernel.mean(x_t, prediction, renoise=prediction), kernel.mean(x_t, prediction))


# --- steps of diffusers ---


@pytest.mark.parametrize("steps", [T, 50, 7])
@pytest.mark.parametrize(("ours", "theirs"), [("beta_tilde", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_an_ancestral_step_is_that_of_their_ddpm_scheduler(x_t, eps, steps, ours, theirs, clip):
    schedule = CosineSchedule() if clip else LinearSchedule()
    scheduler = with_our_table(DDPMScheduler(variance_type=theirs, clip_sample=clip is not None), schedule)
    grid = schedule.levels(steps)
    scheduler.set_timesteps(timesteps=[level.timestep for level in grid[:-1]])
    visited = range(0, steps, max(1, steps // 25))
    for index in [*visited, steps - 1]:
        level, next_level = grid[index], grid[index + 1]
        kernel = Kernel(level, next_level, kind=ours, clip=clip)
        noise = torch.randn(x_t.shape, dtype=x_t.dtype, generator=torch.Generator().manual_seed(index))
        x_s = kernel.mean(x_t, denoised(x_t, eps, level)) + kernel.std * noise
        expected = scheduler.step(eps, level.timestep, x_t, torch.Generator().manual_seed(index)).prev_sample
        if next_level.sigma == 0 and level.timestep > 0:
            # theirs draws noise for the data as well, unless the grid ends with time 0; ours never
            expected -= scheduler._get_variance(level.timestep) ** 0.5 * noise
        torch.testing.assert_close(x_s, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("steps", [T, 250, 50, 4])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_at_any_eta_is_that_of_their_ddim_scheduler(x_t, eps, steps, eta, clip):
    schedule = LinearSchedule()
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=clip is not None)
    scheduler = with_our_table(scheduler, schedule)
    scheduler.set_timesteps(steps)
    grid = schedule.levels(steps)
    # "trailing": from the noisiest level, evenly, to the data
    assert [level.timestep for level in grid] == [*scheduler.timesteps.tolist(), -1]
    visited = range(0, steps, max(1, steps // 25))
    for index in [*visited, steps - 1]:
        level = grid[index]
        kernel = Kernel(level, grid[index + 1], eta, clip=clip)
        noise = torch.randn(x_t.shape, dtype=x_t.dtype, generator=torch.Generator().manual_seed(index))
        x_s = kernel.mean(x_t, denoised(x_t, eps, level)) + kernel.std * noise
        # theirs keeps the unclipped noise beside the clipped denoised prediction unless told otherwise
        options = {"use_clipped_model_output": True, "variance_noise": noise}
        expected = scheduler.step(eps, level.timestep, x_t, eta, **options).prev_sample
        torch.testing.assert_close(x_s, expected, rtol=0, atol=ROUNDING)
