"""What networks predict, and the denoised predictions that follow."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dng_lightning.kernel import NoiseLevel
from dng_lightning.parametrization import (
    NEEDS_SIGNAL,
    SIGMA_DATA,
    Prediction,
    denoised_of,
    network_input,
    output_of,
    preconditioning,
    target_of,
    x0_error,
)
from dng_lightning.schedule import CosineSchedule, KarrasSchedule, LinearSchedule, RectifiedFlowSchedule

PATHS = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "variance exploding": KarrasSchedule(40),
    "rectified flow": RectifiedFlowSchedule(40, 40 / 41),
    "rectified flow from pure noise": RectifiedFlowSchedule(40),
}
PREDICTIONS = get_args(Prediction)

paths, label_space, seeds = st.sampled_from(sorted(PATHS)), st.sampled_from(PREDICTIONS), st.integers(0, 2**31)


@given(paths, label_space, seeds)
@settings(max_examples=120, deadline=None)
def test_a_network_that_learned_its_target_perfectly_gives_back_the_data_and_the_noise(path, kind, seed):
    schedule, generator = PATHS[path], torch.Generator().manual_seed(seed)
    noisiest = schedule.T - (kind in NEEDS_SIGNAL and float(schedule.alpha[-1]) == 0)
    t = torch.randint(1, noisiest + 1, (5,), generator=generator)
    x_0 = torch.randn(5, 1, 2, 2, dtype=torch.double, generator=generator)
    noise = torch.randn(5, 1, 2, 2, dtype=torch.double, generator=generator)
    x_t = schedule.add_noise(x_0, t, noise)
    alpha, sigma = schedule.alpha[t].view(-1, 1, 1, 1), schedule.sigma[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, alpha * x_0 + sigma * noise)
    target = schedule.target(x_0, t, noise, kind)
    plain = {"eps": noise, "x0": x_0, "v": alpha * noise - sigma * x_0, "flow": noise - x_0}
    if kind in plain:
        torch.testing.assert_close(target, plain[kind])
    denoised = denoised_of(target, x_t, alpha, sigma, kind)
    # of eps, x_0 is good to 1e-16 / alpha, and the smallest alpha of the cosine schedule is 5e-5
    torch.testing.assert_close(denoised, x_0, rtol=0, atol=1e-11)
    # x_t - alpha x_0 is noise only to 1e-16 / sigma, and the smallest sigma here is 0.002
    torch.testing.assert_close((x_t - alpha * denoised) / sigma, noise, rtol=0, atol=1e-11)


@given(paths, label_space, seeds)
@settings(max_examples=120, deadline=None)
def test_output_of_and_denoised_of_are_inverse(path, kind, seed):
    schedule, generator = PATHS[path], torch.Generator().manual_seed(seed)
    noisiest = schedule.T - (kind in NEEDS_SIGNAL and float(schedule.alpha[-1]) == 0)
    level = schedule.level(int(torch.randint(1, noisiest + 1, (), generator=generator)))
    x_t, value = torch.randn(2, 3, 2, 4, dtype=torch.double, generator=generator)
    denoised = denoised_of(value, x_t, level.alpha, level.sigma, kind)
    output = output_of(value, x_t, level, kind)
    # fp64, enlarged by the factor between the two: at most 1 / alpha or 1 / sigma
    size = max(1.0, level.sigma / max(level.alpha, 1e-4), 1 / level.sigma)
    back = output_of(denoised, x_t, level, kind)
    torch.testing.assert_close(back, value, rtol=0, atol=1e-14 * size**2)
    there = denoised_of(output, x_t, level.alpha, level.sigma, kind)
    torch.testing.assert_close(there, value, rtol=0, atol=1e-14 * size**2)


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_at_pure_noise_the_denoised_prediction_is_finite_and_follows_the_output(kind):
    x_t, output = torch.randn(2, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    denoised = denoised_of(output, x_t, 0.0, 1.0, kind)
    expected = {"x0": output, "v": -output, "flow": x_t - output}[kind]
    torch.testing.assert_close(denoised, expected)
    torch.testing.assert_close(output_of(denoised, x_t, NoiseLevel(0.0, 1.0, 1), kind), output)


@pytest.mark.parametrize("schedule", [KarrasSchedule(40), LinearSchedule()], ids=["Karras", "linear"])
@pytest.mark.parametrize("t", [1, 10, 25, 40])
def test_edm_shows_and_teaches_the_network_numbers_of_unit_variance(schedule, t):
    """For data of EDM's standard deviation .5, whatever the noise level: 80 at the noisiest of Karras."""
    generator = torch.Generator().manual_seed(t)
    x_0 = SIGMA_DATA * torch.randn(100_000, 1, dtype=torch.double, generator=generator)
    noise = torch.randn(100_000, 1, dtype=torch.double, generator=generator)
    level = schedule.level(t)
    x_t = level.alpha * x_0 + level.sigma * noise
    error = 4 * math.sqrt(2 / len(x_0))
    assert float(network_input(x_t, level.alpha, level.sigma, "edm").var()) == pytest.approx(1, abs=error)
    target = target_of(x_0, noise, torch.tensor(level.alpha), torch.tensor(level.sigma), "edm")
    assert float(target.var()) == pytest.approx(1, abs=error)
    for kind in set(PREDICTIONS) - {"edm"}:
        assert network_input(x_t, level.alpha, level.sigma, kind) is x_t


def test_edms_preconditioning_is_that_of_the_paper():
    # Karras et al., table 1, at sigma = 2 with sigma_data = 1/2
    c_skip, c_out, c_in = preconditioning(2.0)
    assert (c_skip, c_out, c_in) == pytest.approx((0.25 / 4.25, 1 / math.sqrt(4.25), 1 / math.sqrt(4.25)))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_error_of_x0_is_that_of_the_output_by_its_factor(kind):
    for level in (LinearSchedule().level(300), KarrasSchedule(40).level(20), RectifiedFlowSchedule(40).level(30)):
        output, x_t = torch.randn(2, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
        at = level.alpha, level.sigma, kind
        moved = denoised_of(output + 0.1, x_t, *at) - denoised_of(output, x_t, *at)
        factor = x0_error(torch.tensor(level.alpha).double(), torch.tensor(level.sigma).double(), kind)
        torch.testing.assert_close(moved.square() / 0.01, factor.expand(8))
