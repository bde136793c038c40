import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.class_balance import (
    bootstrap_interval,
    forbidden_rate,
    kl_divergence,
    kl_interval,
    kl_to,
    kl_to_interval,
    posterior_quality,
    total_variation,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(successes: int, trials: int, low: float, high: float):
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("trials", [1, 7, 20, 100, 1000, 4096])
def test_wilson_interval_reaches_0_and_1(trials: int):
    assert (wilson_interval(0, trials)[0], wilson_interval(trials, trials)[1]) == (0, 1)
    assert 0 < wilson_interval(1, trials)[0] < wilson_interval(0, trials)[1] < 1


def test_the_forbidden_rate_counts_all_forbidden_classes():
    assert forbidden_rate([3, 10, 5, 2], [0, 3]) == (0.25, *wilson_interval(5, 20))


def test_the_divergence_is_that_of_the_smoothed_histogram():
    shares = [4.5 / 22, 10.5 / 22, 5.5 / 22, 1.5 / 22]  # half an image more of each
    uniform = sum(math.log(1 / 4 / share) / 4 for share in shares)
    assert kl_divergence([4, 10, 5, 1]) == pytest.approx(uniform)
    # what leaked stays in the denominator, so that it costs
    retained = sum(math.log(1 / 3 / share) / 3 for share in shares[1:])
    assert kl_divergence([4, 10, 5, 1], [0]) == pytest.approx(retained)


def test_the_divergence_is_finite_without_any_image_of_a_class():
    assert 0 < kl_divergence([0, 50, 50]) < kl_divergence([0, 100, 0]) < math.inf
    assert kl_divergence([50, 50, 50]) == pytest.approx(0)


def test_the_divergence_to_another_balance():
    """Of the unguided images half are of one class: as many here is right, and an even share is not."""
    assert kl_to([500, 250, 250], [20, 10, 10]) == pytest.approx(0, abs=1e-3)
    assert kl_to([10_000, 10_000, 10_000], [2, 1, 1]) == pytest.approx(math.log(3) - 1.5 * math.log(2), abs=1e-3)
    assert kl_to([0, 5, 5], [0, 1, 1]) == pytest.approx(math.log(11.5 / 11))  # what is not in the target costs a leak
    assert kl_to([3, 4, 5], [1, 0, 1]) == kl_divergence([3, 4, 5], [1])


def test_the_interval_of_a_divergence_between_images_knows_of_both():
    generator, shares = np.random.default_rng(1), [0.2, 0.3, 0.5]
    found = [kl_to(*generator.multinomial(400, shares, 2).tolist()) for _ in range(4000)]
    low, high = kl_to_interval([80, 120, 200], [80, 120, 200])
    assert low == 0
    assert high == pytest.approx(np.quantile(found, 0.975) - np.mean(found), rel=0.2)
    assert high > 1.5 * kl_to_interval([80, 120, 200], [80_000, 120_000, 200_000])[1]


def test_total_variation_is_the_mass_to_be_moved():
    assert total_variation([25, 25, 25, 25]) == 0
    assert total_variation([10, 30, 30, 30], [0]) == pytest.approx(0.1)
    assert total_variation([100, 0, 0, 0], [0]) == pytest.approx(1)


# --- intervals ---


def scatter_of_kl(shares: torch.Tensor, n: int) -> torch.Tensor:
    drawn = torch.distributions.Multinomial(n, shares).sample((500,))
    return torch.tensor([kl_divergence(row, [0]) for row in drawn.int().tolist()])


def test_the_interval_is_as_wide_as_the_divergence_scatters():
    torch.manual_seed(0)
    shares = torch.tensor([0.02, 0.18, 0.3, 0.4, 0.1])
    low, high = kl_interval((2000 * shares).int().tolist(), [0], draws=2000)
    assert high - low == pytest.approx(2 * 1.96 * float(scatter_of_kl(shares, 2000).std()), rel=0.1)


def test_the_interval_contains_the_divergence_where_resampling_only_adds_to_it():
    counts = [0, 100, 101, 99, 100]
    low, high = kl_interval(counts, [0])
    assert 0 <= low <= kl_divergence(counts, [0]) < high
    assert kl_interval(counts, [0]) == (low, high)
    assert kl_interval(counts, [0], seed=1) != (low, high)


def test_the_draws_are_shifted_to_the_point_and_cut_at_zero():
    values = [float(value) for value in range(101)]  # mean 50, quantiles 2.5 and 97.5
    assert bootstrap_interval(values, point=60.0) == pytest.approx((12.5, 107.5))
    assert bootstrap_interval(values, point=40.0) == pytest.approx((0.0, 87.5))


# --- the posterior as a forecast ---


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    quality = posterior_quality(torch.tensor([0.9, 0.3, 0.5, 0.1]), torch.tensor([True, True, False, False]))
    assert quality.auc == pytest.approx(3 / 4)
    assert quality.brier == pytest.approx((0.1**2 + 0.7**2 + 0.5**2 + 0.1**2) / 4)


def test_the_curve_says_what_share_a_posterior_came_true():
    posterior = torch.tensor([0.02, 0.04, 0.09, 0.1, 0.55, 0.55, 0.59, 1.0])
    became = torch.tensor([False, False, True, False, True, True, False, True])
    assert posterior_quality(posterior, became).curve == [
        (pytest.approx(0.05), pytest.approx(1 / 3), 3),
        (pytest.approx(0.1), 0, 1),
        (pytest.approx(0.5633, abs=1e-4), pytest.approx(2 / 3), 3),
        (1, 1, 1),
    ]
    assert [count for *_, count in posterior_quality(posterior, became, bins=2).curve] == [4, 4]


def test_a_sum_of_posteriors_may_exceed_one_by_rounding():
    quality = posterior_quality(torch.tensor([1.0000001, -1e-9]), torch.tensor([True, False]))
    assert (quality.auc, quality.brier) == (1, 0)
    assert quality.curve == [(0, 0, 1), (1, 1, 1)]


@pytest.mark.parametrize("became", [True, False])
def test_no_area_where_all_images_became_the_same(became: bool):
    quality = posterior_quality(torch.tensor([0.5, 1.0]), torch.tensor([became, became]))
    assert quality.auc is None
    assert quality.brier == pytest.approx(0.125 if became else 0.625)


@pytest.mark.parametrize(
    "measure", [lambda: kl_interval([0, 0]), lambda: posterior_quality(torch.zeros(0), torch.zeros(0).bool())]
)
def test_no_image_is_refused(measure: Callable[[], object]):
    with pytest.raises(SettingError, match=r"needs at least 1 images; got 0: raise data.num_samples"):
        measure()
