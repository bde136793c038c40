"""The schedules are diffusers', and their grids and tables are what they say."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dng_lightning.errors import SettingError
from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import denoised_of
from dng_lightning.schedule import CosineSchedule, KarrasSchedule, LinearSchedule, NoiseSchedule, RectifiedFlowSchedule

T = 1000

PATHS = {
    "linear": LinearSchedule(),
    "linear-40": LinearSchedule(40, 1e-3, 0.3),
    "cosine": CosineSchedule(),
    "variance exploding": KarrasSchedule(40),
    "rectified flow": RectifiedFlowSchedule(40, 40 / 41),
}


# --- tables ---


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


@pytest.mark.parametrize("u_max", [0.95, 1.0])
def test_a_rectified_flow_is_a_straight_line_to_pure_noise_or_short_of_it(u_max):
    schedule = RectifiedFlowSchedule(10, u_max)
    torch.testing.assert_close(schedule.alpha + schedule.sigma, torch.ones(11, dtype=torch.double))
    torch.testing.assert_close(schedule.sigma, torch.linspace(0, u_max, 11, dtype=torch.double))


def test_by_default_a_rectified_flow_starts_at_pure_noise():
    noisiest = RectifiedFlowSchedule().level(T)
    assert noisiest == NoiseLevel(0.0, 1.0, T - 1)
    assert noisiest.log_snr == -math.inf


@pytest.mark.parametrize("setting", [{"steps": 0}, {"sigma_min": 0.0}, {"sigma_min": 80.0}, {"rho": 0.0}])
def test_a_karras_schedule_refuses_what_does_not_rise(setting):
    with pytest.raises(SettingError, match="Karras schedule needs"):
        KarrasSchedule(**setting)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"u_max": 1.1}, {"u_max": 0.0}])
def test_a_rectified_flow_refuses_to_go_beyond_pure_noise(setting):
    with pytest.raises(SettingError, match="rectified flow needs"):
        RectifiedFlowSchedule(**setting)


# --- levels and grids ---


@pytest.mark.parametrize("path", PATHS)
def test_a_level_has_its_entries_of_the_tables(path):
    schedule = PATHS[path]
    for t in (0, 1, schedule.T // 2, schedule.T):
        level = schedule.level(t)
        assert (level.alpha, level.sigma) == (float(schedule.alpha[t]), float(schedule.sigma[t]))
        assert level.timestep == t - 1  # as DDPM's networks count
        assert schedule.fraction(level) == pytest.approx(t / schedule.T, rel=1e-15)
        snr = level.alpha**2 / level.sigma**2 if t else math.inf
        assert level.log_snr == pytest.approx(math.log(snr) if t else math.inf, rel=1e-12, abs=1e-12)


def test_networks_may_be_told_other_timesteps():
    schedule = NoiseSchedule(torch.tensor([0.8, 0.4]), torch.tensor([0.2, 0.6]), torch.tensor([0.0, 0.25, 0.75]))
    assert [level.timestep for level in schedule.levels(2)] == [0.75, 0.25, 0.0]
    assert [schedule.fraction(level) for level in schedule.levels(2)] == [1.0, pytest.approx(1 / 3), 0.0]
    assert schedule.timestep(torch.tensor([2, 0])).tolist() == [0.75, 0.0]


@pytest.mark.parametrize("t", [-1, T + 1])
def test_a_level_that_the_schedule_does_not_have_is_refused(t):
    with pytest.raises(SettingError, match=f"0 to {T}; got {t}"):
        LinearSchedule().level(t)


def numbers(levels: list[NoiseLevel]) -> list[int]:
    """The numbers of levels, from what the networks are told."""
    return [int(level.timestep) + 1 for level in levels]


def test_the_levels_go_from_the_noisiest_to_the_data_each_once_and_evenly():
    schedule = LinearSchedule()
    for steps in range(1, T + 1):
        levels = numbers(schedule.levels(steps))
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
    assert numbers(schedule.levels(levels)) == list(range(levels, -1, -1))


@pytest.mark.parametrize("steps", [-1, 0, T + 1])
def test_a_number_of_steps_that_the_schedule_does_not_have_is_refused(steps):
    with pytest.raises(SettingError, match=f"between 1 and {T}.*got {steps}"):
        LinearSchedule().levels(steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noising_keeps_the_dtype_of_the_images(dtype):
    x_0 = torch.ones(2, 1, 4, 4, dtype=dtype)
    assert LinearSchedule().add_noise(x_0, torch.tensor([1, T]), x_0).dtype == dtype


# --- errors ---


@pytest.mark.parametrize(
    ("alpha", "sigma", "reason"),
    [
        ([], [], "at least one level"),
        ([0.9, 0.8], [0.1], "one alpha and one sigma per level"),
        ([[0.9]], [[0.1]], "one alpha and one sigma per level"),
        ([0.0, 0.9], [0.1, 1.0], "decreases"),
        ([0.0, 0.0], [0.9, 1.0], "decreases"),
        ([0.9, -0.5], [0.1, 1.0], "alpha >= 0"),
        ([0.9, 0.5], [0.0, 1.0], "sigma > 0"),
        ([0.9, 0.5], [0.5, 0.1], "decreases"),
        ([0.9, 0.9], [0.1, 0.1], "decreases"),
        ([0.9, 0.5], [0.1, float("inf")], "sigma > 0"),
        ([0.9, float("nan")], [0.1, 0.2], "alpha >= 0"),
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
    with pytest.raises(SettingError, match=r"needs steps >= 1 and shift >= 0|needs alpha >= 0"):
        CosineSchedule(steps, shift)


# --- devices ---


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
            schedule.target(x, t, x, "v")
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
    ones = torch.ones(2, 4)
    with torch.inference_mode():
        expected = denoised_of(ones, ones, *schedule.coefficients(t, ones), "v")
    found = denoised_of(output, ones, *schedule.coefficients(t, ones), "v")
    found.sum().backward()
    assert torch.equal(found.detach(), expected)
    assert output.grad is not None
