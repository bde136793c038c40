import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from dng_lightning.errors import SettingError
from dng_lightning.evaluation import distribution_metrics
from dng_lightning.evaluation.class_balance import bootstrap_interval
from dng_lightning.evaluation.distribution_metrics import (
    Moments,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    precision_recall,
)


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(*batches: Tensor) -> Moments:
    found = Moments()
    for batch in batches:
        found.update(batch)
    return found


# --- moments ---


@pytest.mark.parametrize("split", [1, 7, 50, 300])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_any_split_gives_the_moments_of_all(split: int, offset: float):
    features = gaussian(300, 5) * torch.arange(1, 6) + offset
    streamed = moments(*features.split(split), features[:0])
    assert streamed.n == 300
    torch.testing.assert_close(streamed.mean, features.mean(dim=0), rtol=0, atol=1e-9)
    torch.testing.assert_close(streamed.covariance, features.T.cov(), rtol=0, atol=1e-9)


def test_single_precision_is_summed_in_double():
    features = gaussian(300, 5).float() + 1000
    assert torch.equal(moments(features).mean, moments(features.double()).mean)


# --- Fréchet distance ---


def test_the_distance_of_gaussians_that_an_optimal_map_joins():
    """The map x -> T x + shift with symmetric positive T is optimal (Brenier), so its cost is the distance."""
    base, other = gaussian(50, 4).T.cov(), gaussian(50, 4, seed=1)
    transport = other.T.cov() + torch.eye(4)
    mean, shift = gaussian(1, 4, seed=2)[0], torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    step = transport - torch.eye(4)
    cost = (step @ base @ step).trace() + shift.square().sum()
    there = frechet_distance(mean, base, mean + shift, transport @ base @ transport)
    back = frechet_distance(mean + shift, transport @ base @ transport, mean, base)
    assert there == pytest.approx(float(cost), rel=1e-10)
    assert back == pytest.approx(there, rel=1e-10)


def test_it_is_what_torchmetrics_computes():
    real, generated = gaussian(200, 16), 1.5 * gaussian(150, 16, seed=1) @ gaussian(16, 16, seed=2) + 1
    arguments = (real.mean(dim=0), real.T.cov(), generated.mean(dim=0), generated.T.cov())
    assert frechet_distance(*arguments) == pytest.approx(float(_compute_fid(*arguments)), rel=1e-9)


def test_singular_covariances():
    zero = torch.zeros(6, dtype=torch.float64)
    one, other = gaussian(2, 6)
    distance = frechet_distance(zero, one.outer(one), zero, other.outer(other))
    assert distance == pytest.approx(float(one @ one + other @ other - 2 * (one @ other).abs()), rel=1e-6)
    few = gaussian(3, 64).T.cov()
    assert frechet_distance(torch.zeros(64), few, torch.zeros(64), few) <= 1e-6 * few.trace()
    assert frechet_distance(zero, torch.zeros(6, 6), zero + 2, torch.zeros(6, 6)) == 24


def test_the_interval_is_as_wide_as_the_distance_scatters():
    mean, cov = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    distances, widths = [], []
    for seed in range(40):
        features = gaussian(300, 4, seed) + 0.5
        distances.append(frechet_distance(mean, cov, features.mean(dim=0), features.T.cov()))
        low, high = frechet_interval(features, mean, cov, draws=50)
        assert low < distances[-1] < high
        widths.append(high - low)
    assert torch.tensor(widths).mean() == pytest.approx(2 * 1.96 * float(torch.tensor(distances).std()), rel=0.2)


@pytest.mark.parametrize("n", [6, 32, 33])
def test_the_interval_is_that_of_distances_of_redrawn_images_fewer_than_dimensions_or_not(n: int):
    features, mean, cov = gaussian(n, 32) + 0.5, torch.zeros(32).double(), torch.diag(torch.arange(32.0)).double()
    generator = torch.Generator().manual_seed(0)
    redrawn = [features[torch.randint(n, (n,), generator=generator)] for _ in range(20)]
    point, *values = (frechet_distance(mean, cov, x.mean(dim=0), x.T.cov()) for x in (features, *redrawn))
    found = frechet_interval(features, mean, cov, draws=20)
    assert found == pytest.approx(bootstrap_interval(values, point), rel=1e-6)


def test_the_interval_contains_the_distance_where_bias_is_all_there_is():
    features = gaussian(200, 32).float()
    mean, cov = torch.zeros(32), torch.eye(32)
    low, high = frechet_interval(features, mean, cov, draws=50)
    assert 0 < low < frechet_distance(mean, cov, features.mean(dim=0), features.T.cov()) < high
    assert frechet_interval(features, mean, cov, draws=50) == (low, high)
    assert frechet_interval(features, mean, cov, draws=50, seed=1) != (low, high)


# --- kernel distance ---


def test_the_kernel_distance_is_the_mean_over_pairs_of_different_images(monkeypatch: pytest.MonkeyPatch):
    real, generated = gaussian(5, 3), gaussian(7, 3, seed=1) + 0.3

    def mean(pairs: itertools.product) -> float:
        values = [float((x @ y / 3 + 1) ** 3) for x, y in pairs if x is not y]
        return sum(values) / len(values)

    direct = mean(itertools.product(*[list(real)] * 2)) + mean(itertools.product(*[list(generated)] * 2))
    direct -= 2 * mean(itertools.product(real, generated))
    assert kernel_distance(real, generated) == pytest.approx(direct, rel=1e-10)
    monkeypatch.setattr(distribution_metrics, "BLOCK", 3)
    assert kernel_distance(real, generated) == pytest.approx(direct, rel=1e-10)


def test_the_kernel_distance_is_zero_on_average_for_equal_distributions():
    values = [kernel_distance(gaussian(20, 4, seed), gaussian(30, 4, seed + 1000)) for seed in range(200)]
    found = torch.tensor(values)
    assert abs(found.mean()) < 2.5 * found.std() / 200**0.5
    assert 0.2 < (found < 0).float().mean() < 0.8


# --- precision and recall ---


def line(*parts: range) -> Tensor:
    return torch.tensor([value for part in parts for value in part], dtype=torch.float32)[:, None]


@pytest.mark.parametrize("block", [7, 1024])
def test_precision_and_recall_of_sets_that_overlap_by_half(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distribution_metrics, "BLOCK", block)
    real, generated = line(range(100)), line(range(50), range(1000, 1050))
    # 49's third neighbour is 46, so that the generated manifold ends at 52; no real image is near the other half
    assert precision_recall(real, generated) == pytest.approx((0.5, 0.53))
    assert precision_recall(real, generated, k=1) == pytest.approx((0.5, 0.51))
    assert precision_recall(generated, real) == pytest.approx((0.53, 0.5))


def test_precision_and_recall_tell_fidelity_from_diversity():
    everything, one_mode = gaussian(300, 3), 0.1 * gaussian(300, 3, seed=1)
    precision, recall = precision_recall(everything, one_mode)
    assert precision > 0.95
    assert recall < 0.1


# --- refusals ---


@pytest.mark.parametrize(
    ("least", "measure"),
    [
        (2, lambda few: moments(few[:1]).covariance),
        (2, lambda few: frechet_interval(few[:1], torch.zeros(3), torch.eye(3))),
        (2, lambda few: kernel_distance(few, few[:1])),
        (2, lambda few: kernel_distance(few[:1], few)),
        (4, lambda few: precision_recall(few, few[:3])),
        (4, lambda few: precision_recall(few[:3], few)),
        (3, lambda few: precision_recall(few, few[:2], k=2)),
    ],
)
def test_too_few_images(least: int, measure: Callable[[Tensor], object]):
    with pytest.raises(SettingError, match=rf"needs at least {least} images; got {least - 1}: raise data.num_samples"):
        measure(gaussian(9, 3))
