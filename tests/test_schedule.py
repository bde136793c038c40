"""The schedules are diffusers', and the kernels between any two levels of any path are Gaussian conditioning."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dng_lightning.errors import SettingError
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
}


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


def with_our_table(scheduler: DDPMScheduler | DDIMScheduler, schedule: NoiseSchedule):
    """diffusers keeps its tables in fp32, which would hide all but the coarsest mistake in a step."""
    scheduler.alphas_cumprod = schedule.alpha[1:] ** 2
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.double)
    return scheduler


@given(levels_of_a_path(), st.sampled_from(["beta_tilde", "beta"]))
def test_a_prediction_can_be_moved_by_where_its_x0_hat_or_its_mean_shall_go(levels, variance):
    schedule, (t, s) = levels
    step = schedule.transition(t, s, variance=variance)
    generator = torch.Generator().manual_seed(t)
    x_t, eps, by = torch.randn(3, 4, 5, dtype=torch.double, generator=generator)
    moved = step.with_x0_moved(eps, by)
    # relative to x0_hat, whose size is up to sigma / alpha
    size = max(1.0, step.sigma_t / step.alpha_t)
    torch.testing.assert_close(step.x0_hat(x_t, moved) - step.x0_hat(x_t, eps), by, rtol=0, atol=ROUNDING * size)
    moved = step.with_mean_moved(eps, by)
    size = max(1.0, abs(step.x0_coef) * step.sigma_t / step.alpha_t, step.x_coef)
    torch.testing.assert_close(step.mean(x_t, moved) - step.mean(x_t, eps), by, rtol=0, atol=1e-10 * size)
    assert torch.equal(step.with_mean_moved(eps, torch.zeros_like(by)), eps)


# ---------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("steps", [1, 10, 1000])
@pytest.mark.parametrize(
    ("ours", "theirs", "rtol"),
    [(LinearSchedule, "linear", 1e-6), (CosineSchedule, "squaredcos_cap_v2", 1e-4)],
    ids=["linear", "cosine"],
)
def test_the_table_is_that_of_diffusers(ours, theirs, rtol, steps):
    alpha_bar = DDPMScheduler(num_train_timesteps=steps, beta_schedule=theirs).alphas_cumprod.double()
    # theirs is a running product of fp32 numbers: some 6e-8 apart by chance; the last factor of the cosine schedule,
    # 1 - 0.999, is good to 6e-8 / 1e-3 only
    torch.testing.assert_close(ours(steps).alpha[1:] ** 2, alpha_bar, rtol=rtol, atol=0)
    torch.testing.assert_close(ours(steps).sigma[1:] ** 2, 1 - alpha_bar, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()])
def test_level_0_is_the_data_and_the_variance_is_preserved(schedule):
    assert (float(schedule.alpha[0]), float(schedule.sigma[0])) == (1, 0)
    assert schedule.T == T
    assert schedule.alpha.dtype == schedule.sigma.dtype == torch.double
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(T + 1, dtype=torch.double))


def test_the_linear_betas_run_from_beta_min_to_beta_max():
    alpha_bar = LinearSchedule(T, 1e-4, 0.02).alpha ** 2
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    # 1 - alpha_bar' / alpha_bar loses the last bits of betas of 1e-4
    torch.testing.assert_close(beta, torch.linspace(1e-4, 0.02, T, dtype=torch.double), rtol=0, atol=1e-14)


def test_the_levels_of_karras_are_those_of_the_paper():
    # Karras et al., eq. 5: from sigma_max (their i = 0) to sigma_min, and then the data
    schedule, i = KarrasSchedule(18, 0.002, 80.0, 7.0), torch.arange(18, dtype=torch.double)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(schedule.sigma.flip(0), torch.cat([sigma, torch.zeros(1)]), rtol=1e-12, atol=0)
    assert torch.equal(schedule.alpha, torch.ones(19, dtype=torch.double))
    assert KarrasSchedule(1).sigma.tolist() == pytest.approx([0, 80])


def test_a_rectified_flow_is_a_straight_line_that_stops_short_of_pure_noise():
    schedule = RectifiedFlowSchedule(10, 0.95)
    torch.testing.assert_close(schedule.alpha + schedule.sigma, torch.ones(11, dtype=torch.double))
    torch.testing.assert_close(schedule.sigma, torch.linspace(0, 0.95, 11, dtype=torch.double))


@pytest.mark.parametrize("setting", [{"steps": 0}, {"sigma_min": 0.0}, {"sigma_min": 80.0}, {"rho": 0.0}])
def test_a_karras_schedule_refuses_what_does_not_rise(setting):
    with pytest.raises(SettingError, match="Karras schedule needs"):
        KarrasSchedule(**setting)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"u_max": 1.0}, {"u_max": 0.0}])
def test_a_rectified_flow_refuses_to_reach_pure_noise(setting):
    with pytest.raises(SettingError, match="rectified flow needs"):
        RectifiedFlowSchedule(**setting)


# --------------------------------------------------------------------------------------------------------- kernels


def test_consecutive_levels_have_the_kernel_of_ddpm():
    schedule = LinearSchedule()
    alpha_bar = schedule.alpha**2
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.double)
    for t in range(1, T + 1):
        kernel = schedule.transition(t, t - 1)
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
        torch.testing.assert_close(schedule.transition(t, t - 1).mean(x_t, eps), mean, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("t", "ratio"), [(1, 0.455), (2, 0.61), (5, 0.78), (10, 0.86), (20, 0.92), (50, 0.965), (100, 0.982)]
)
def test_beta_is_larger_than_beta_tilde_by_the_known_ratio(t, ratio):
    kernel = LinearSchedule().transition(t + 1, t, variance="beta")
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
    kernel = schedule.transition(t, s)
    # x_coef is the root of a difference of numbers near sigma_s^2: where it is 1e-6 and less, it is good to 1e-12
    assert kernel.x_coef == pytest.approx(gain, rel=1e-7, abs=1e-11)
    assert kernel.x0_coef == pytest.approx(alpha[s] - gain * alpha[t], rel=1e-9, abs=1e-11)
    assert kernel.variance == pytest.approx(joint[0, 0] - gain * joint[1, 0], rel=1e-9, abs=1e-12 * sigma[s] ** 2)
    assert kernel.beta_tilde == kernel.variance
    assert kernel.span == t - s


@pytest.mark.parametrize(
    ("path", "t", "s"), [("variance exploding", 30, 11), ("variance exploding", 40, 1), ("rectified flow", 39, 7)]
)
def test_the_kernel_has_the_closed_form_of_its_path(path, t, s):
    schedule = PATHS[path]
    kernel = schedule.transition(t, s)
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
    schedule, (t, s, r) = path
    first, second, both = schedule.transition(t, s), schedule.transition(s, r), schedule.transition(t, r)
    # x_r = second.x_coef x_s + second.x0_coef x_0 + noise, and x_s = first.x_coef x_t + first.x0_coef x_0 + noise
    # as above: the root of a difference of numbers near sigma^2
    assert second.x_coef * first.x_coef == pytest.approx(both.x_coef, rel=1e-7, abs=1e-11)
    assert second.x_coef * first.x0_coef + second.x0_coef == pytest.approx(both.x0_coef, rel=1e-9, abs=1e-11)
    assert second.x_coef**2 * first.variance + second.variance == pytest.approx(both.variance, rel=1e-9, abs=1e-14)


@given(levels_of_a_path(), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_every_eta_keeps_the_marginals(path, eta):
    schedule, (t, s) = path
    kernel = schedule.transition(t, s, eta=eta)
    alpha, sigma = schedule.alpha, schedule.sigma
    assert kernel.x_coef * alpha[t] + kernel.x0_coef == pytest.approx(float(alpha[s]), rel=1e-9)
    variance = kernel.x_coef**2 * sigma[t] ** 2 + kernel.variance
    assert float(variance) == pytest.approx(float(sigma[s] ** 2), rel=1e-9, abs=1e-15)
    assert kernel.variance == pytest.approx(eta**2 * kernel.beta_tilde, rel=1e-12)


@pytest.mark.parametrize("path", sorted(PATHS))
def test_the_last_step_and_ddim_draw_no_noise(path):
    schedule = PATHS[path]
    for variance in ("beta_tilde", "beta"):
        last = schedule.transition(schedule.T // 2, 0, variance=variance)
        assert (last.variance, last.x_coef, last.x0_coef) == (0, 0, 1)
    assert schedule.transition(schedule.T, 1, eta=0).variance == 0


@pytest.mark.parametrize("path", sorted(PATHS))
def test_the_larger_variance_is_that_of_the_forward_step_and_leaves_the_mean(path):
    schedule = PATHS[path]
    t, s = schedule.T, schedule.T // 2
    small, large = schedule.transition(t, s), schedule.transition(t, s, variance="beta")
    forward = schedule.sigma[t] ** 2 - (schedule.alpha[t] / schedule.alpha[s] * schedule.sigma[s]) ** 2
    assert large.variance == pytest.approx(float(forward), rel=1e-12)
    assert large.variance >= small.variance == large.beta_tilde
    assert (large.x_coef, large.x0_coef) == (small.x_coef, small.x0_coef)


def test_the_clip_bounds_the_denoised_prediction_and_the_mean_uses_it(x_t, eps):
    free, clipped = LinearSchedule().transition(700, 500), LinearSchedule().transition(700, 500, clip=0.5)
    assert free.x0_hat(x_t, eps).abs().max() > 0.5
    x0_hat = free.x0_hat(x_t, eps).clamp(-0.5, 0.5)
    assert torch.equal(clipped.x0_hat(x_t, eps), x0_hat)
    assert torch.equal(clipped.mean(x_t, eps), clipped.x_coef * x_t + clipped.x0_coef * x0_hat)


# ----------------------------------------------------------------------------------------------- steps of diffusers


@pytest.mark.parametrize("steps", [T, 50, 7])
@pytest.mark.parametrize(("ours", "theirs"), [("beta_tilde", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_an_ancestral_step_is_that_of_their_ddpm_scheduler(x_t, eps, steps, ours, theirs, clip):
    schedule = CosineSchedule() if clip else LinearSchedule()
    scheduler = with_our_table(DDPMScheduler(variance_type=theirs, clip_sample=clip is not None), schedule)
    grid = schedule.levels(steps)
    scheduler.set_timesteps(timesteps=[t - 1 for t in grid[:-1]])  # their time t - 1 is our level t
    visited = range(0, steps, max(1, steps // 25))
    for index in [*visited, steps - 1]:
        t, s = grid[index], grid[index + 1]
        kernel = schedule.transition(t, s, variance=ours, clip=clip)
        noise = torch.randn(x_t.shape, dtype=x_t.dtype, generator=torch.Generator().manual_seed(t))
        x_s = kernel.mean(x_t, eps) + kernel.variance**0.5 * noise
        expected = scheduler.step(eps, t - 1, x_t, torch.Generator().manual_seed(t)).prev_sample
        if s == 0 and t > 1:  # theirs draws noise for the data as well, unless the grid ends with time 0; ours never
            expected -= scheduler._get_variance(t - 1) ** 0.5 * noise
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
    assert grid == [*(scheduler.timesteps + 1).tolist(), 0]  # "trailing": from the noisiest level, evenly, to the data
    visited = range(0, steps, max(1, steps // 25))
    for index in [*visited, steps - 1]:
        t, s = grid[index], grid[index + 1]
        kernel = schedule.transition(t, s, eta=eta, clip=clip)
        noise = torch.randn(x_t.shape, dtype=x_t.dtype, generator=torch.Generator().manual_seed(t))
        x_s = kernel.mean(x_t, eps) + kernel.variance**0.5 * noise
        # theirs keeps the unclipped noise beside the clipped denoised prediction unless told otherwise
        expected = scheduler.step(eps, t - 1, x_t, eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
        torch.testing.assert_close(x_s, expected, rtol=0, atol=ROUNDING)


# ------------------------------------------------------------------------------------------------------------ grids


def test_the_levels_go_from_the_noisiest_to_the_data_each_once_and_evenly():
    schedule = LinearSchedule()
    for steps in range(1, T + 1):
        levels = schedule.levels(steps)
        gaps = -np.diff(levels)
        assert (levels[0], levels[-1], len(levels)) == (T, 0, steps + 1)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
        even = np.linspace(T, 0, steps + 1)
        assert np.abs(levels - even).max() <= 0.5 + 1e-9  # the nearest level


@pytest.mark.parametrize("levels", [1, 2, 3, 10, 37])
def test_every_number_of_steps_visits_each_level_once_in_short_schedules(levels):
    schedule = LinearSchedule(levels)
    for steps in range(1, levels + 1):
        assert len(set(schedule.levels(steps))) == steps + 1
    assert schedule.levels(levels) == list(range(levels, -1, -1))


@pytest.mark.parametrize("steps", [-1, 0, T + 1])
def test_a_number_of_steps_that_the_schedule_does_not_have_is_refused(steps):
    with pytest.raises(SettingError, match=f"between 1 and {T}.*got {steps}"):
        LinearSchedule().levels(steps)


# ------------------------------------------------------------------------------------------------------ predictions


@given(st.sampled_from(sorted(PATHS)), st.sampled_from(["eps", "x0", "v"]), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_network_that_learned_its_target_perfectly_gives_back_the_noise(path, prediction, seed):
    schedule, generator = PATHS[path], torch.Generator().manual_seed(seed)
    t = torch.randint(1, schedule.T + 1, (5,), generator=generator)
    x_0 = torch.randn(5, 1, 2, 2, dtype=torch.double, generator=generator)
    noise = torch.randn(5, 1, 2, 2, dtype=torch.double, generator=generator)
    x_t = schedule.add_noise(x_0, t, noise)
    alpha, sigma = schedule.alpha[t].view(-1, 1, 1, 1), schedule.sigma[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, alpha * x_0 + sigma * noise)
    target = schedule.target(x_0, t, noise, prediction)
    torch.testing.assert_close(target, {"eps": noise, "x0": x_0, "v": alpha * noise - sigma * x_0}[prediction])
    # x_t - alpha x_0 is noise only to 1e-16 / sigma, and the smallest sigma here is 0.002
    torch.testing.assert_close(schedule.to_eps(target, x_t, t, prediction), noise, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noising_keeps_the_dtype_of_the_images(dtype):
    x_0 = torch.ones(2, 1, 4, 4, dtype=dtype)
    assert LinearSchedule().add_noise(x_0, torch.tensor([1, T]), x_0).dtype == dtype


def test_the_denoised_prediction_gives_back_the_data(x_t, eps):
    schedule = LinearSchedule()
    for t in (1, 500, T):
        noisy = schedule.add_noise(x_t, torch.full((4,), t), eps)
        torch.testing.assert_close(schedule.transition(t, 0).x0_hat(noisy, eps), x_t, rtol=0, atol=ROUNDING)


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("alpha", "sigma", "reason"),
    [
        ([], [], "at least one level"),
        ([0.9, 0.8], [0.1], "one alpha and one sigma a level"),
        ([[0.9]], [[0.1]], "one alpha and one sigma a level"),
        ([0.9, 0.0], [0.1, 1.0], "alpha > 0"),
        ([0.9, -0.5], [0.1, 1.0], "alpha > 0"),
        ([0.9, 0.5], [0.0, 1.0], "sigma > 0"),
        ([0.9, 0.5], [0.5, 0.1], "rises"),
        ([0.9, 0.9], [0.1, 0.1], "rises"),
        ([0.9, float("nan")], [0.1, 0.2], "alpha > 0"),
    ],
)
def test_what_is_no_path_from_data_to_noise_is_refused(alpha, sigma, reason):
    with pytest.raises(SettingError, match=reason):
        NoiseSchedule(torch.tensor(alpha), torch.tensor(sigma))


@pytest.mark.parametrize(
    ("steps", "beta_min", "beta_max"),
    [(0, 1e-4, 0.02), (10, 0, 0.02), (10, 0.03, 0.02), (10, 1e-4, 1), (10, float("nan"), 0.02)],
)
def test_a_linear_schedule_refuses_betas_outside_0_and_1(steps, beta_min, beta_max):
    with pytest.raises(SettingError, match="linear schedule needs"):
        LinearSchedule(steps, beta_min, beta_max)


@pytest.mark.parametrize(("steps", "shift"), [(0, 0.008), (10, -0.1), (10, float("nan"))])
def test_a_cosine_schedule_refuses_no_steps_and_a_negative_shift(steps, shift):
    with pytest.raises(SettingError, match=r"needs steps >= 1 and shift >= 0|needs alpha > 0"):
        CosineSchedule(steps, shift)


def test_noise_that_goes_back_may_be_another_than_the_one_taken_out():
    """DDIM's form of the mean: alpha_s x0_hat + sqrt(sigma_s^2 - variance) renoise, at any eta (CFG++)."""
    schedule, (x_t, eps, other) = LinearSchedule(), torch.randn(3, 4, 1, 2, 2).unbind()
    for eta in (0.0, 0.5, 1.0):
        kernel = schedule.transition(500, 460, eta=eta)
        back = (float(schedule.sigma[460]) ** 2 - kernel.variance) ** 0.5
        expected = float(schedule.alpha[460]) * kernel.x0_hat(x_t, eps) + back * other
        torch.testing.assert_close(kernel.mean(x_t, eps, renoise=other), expected)
        torch.testing.assert_close(kernel.mean(x_t, eps, renoise=eps), kernel.mean(x_t, eps))


# --------------------------------------------------------------------------------------------------------- devices


class Moves(TorchDispatchMode):
    """Notes the dtype of whatever is moved to the device without data."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.is_meta and not any(isinstance(a, Tensor) and a.is_meta for a in args):
            self.dtypes.append(made.dtype)
        return made


def test_a_device_is_given_each_table_once_and_none_in_fp64():
    schedule = CosineSchedule()
    t, x = torch.empty(3, dtype=torch.long, device="meta"), torch.empty(3, 1, 8, 8, device="meta")
    with Moves() as moves:
        for _ in range(3):
            schedule.add_noise(x, t, x)
            schedule.to_eps(x, x, t, "v")
            schedule.min_snr_weight(t, 5.0, "v")
    assert moves.dtypes == [torch.float32] * 3  # alpha, sigma and the weights


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_a_level_has_is_its_fp64_entry_rounded_once(path, dtype):
    schedule = PATHS[path]
    t, like = torch.arange(1, schedule.T + 1).flip(0), torch.empty(1, 1, dtype=dtype)
    for found, table in zip(schedule.coefficients(t, like), (schedule.alpha, schedule.sigma), strict=True):
        assert torch.equal(found.squeeze(1), table[t].to(dtype))
    signal, noise = schedule.alpha[t] ** 2, schedule.sigma[t] ** 2
    expected = (signal / noise).clamp(max=5.0) * (noise / signal)
    assert torch.equal(schedule.min_snr_weight(t, 5.0, "eps"), expected.float())


def test_a_table_that_was_first_asked_for_in_inference_mode_is_good_for_training():
    schedule, t = CosineSchedule(), torch.tensor([3, 700])
    output = torch.ones(2, 4, requires_grad=True)
    with torch.inference_mode():
        expected = schedule.to_eps(torch.ones(2, 4), torch.ones(2, 4), t, "v")
    found = schedule.to_eps(output, torch.ones(2, 4), t, "v")
    found.sum().backward()
    assert torch.equal(found.detach(), expected)
    assert output.grad is not None
