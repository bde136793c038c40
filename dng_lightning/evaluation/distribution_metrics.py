"""Distances between real and generated images, from their features (N, d).

All distances depend on the number of images, so that only values for equal numbers are comparable. They are computed in
double precision on the CPU, so that they depend on neither the device nor the batch size.
"""

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_kernel

from dng_lightning.evaluation.class_balance import bootstrap_interval, check_count

BLOCK = 1024  # rows at a time, which bounds a block of a distance matrix to 80 MB for 10,000 images


class Moments:
    """Count, mean and covariance of features that come in batches; memory does not grow with their number.

    Batches are merged by their centred moments (Chan et al., 1979), which loses no precision if the mean is large.

    Attributes:
        n: number of images so far.
        mean: float64 (d,).
        scatter: sum of the outer products of the deviations from the mean, float64 (d, d).
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.scatter = torch.zeros((), dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features (B, d) of any precision and device."""
        if not len(features):
            return
        features = _double(features)
        mean = features.mean(dim=0)
        centred = features - mean
        self.merge(len(features), mean, centred.T @ centred)

    def merge(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        """Add the moments of ``n`` >= 1 images."""
        total = self.n + n
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + delta.outer(delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total

    @property
    def covariance(self) -> Tensor:
        """float64 (d, d), unbiased.

        Raises:
            SettingError: fewer than two images.
        """
        check_count("a covariance", self.n, 2)
        return self.scatter / (self.n - 1)


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau, 1982); of Inception features it is FID.

    |mean_1 - mean_2|^2 + Tr(cov_1 + cov_2 - 2 (cov_1 cov_2)^1/2). The last trace is computed from the root of the
    symmetric cov_1^1/2 cov_2 cov_1^1/2, whose eigenvalues are real even if a covariance is singular. The function in
    torchmetrics, against which this one is tested, is private and uses the eigenvalues of the product cov_1 cov_2, at
    five times the cost.

    Args:
        mean_1: (d,).
        cov_1: (d, d), symmetric; may be singular.
        mean_2: (d,).
        cov_2: (d, d), symmetric; may be singular.

    Returns:
        >= 0. Exact up to 1e-6 of the traces if a covariance is singular.
    """
    return _distance(_double(mean_1), _root(_double(cov_1)), _double(mean_2), _double(cov_2))


def frechet_interval(
    features: Tensor, real_mean: Tensor, real_cov: Tensor, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the Fréchet distance at this number of generated images.

    Images are resampled with replacement; see `bootstrap_interval`. On one core all draws take half a second for 2,000
    images in 128 dimensions, but each draw takes about three seconds in 2,048 dimensions.

    Args:
        features: features of the generated images, (N, d).
        real_mean: (d,).
        real_cov: (d, d).
        draws: number of resamples.
        seed: seed of the resampling.

    Raises:
        SettingError: there are fewer than two images.
    """
    check_count("the Fréchet distance's interval", len(features), 2)
    features, mean, root = _double(features), _double(real_mean), _root(_double(real_cov))

    def distance(generated: Tensor) -> float:
        return _distance(mean, root, generated.mean(dim=0), generated.T.cov())

    n, generator = len(features), torch.Generator().manual_seed(seed)
    values = [distance(features[torch.randint(n, (n,), generator=generator)]) for _ in range(draws)]
    return bootstrap_interval(values, distance(features))


def kernel_distance(real: Tensor, generated: Tensor) -> float:
    """Kernel distance, in Inception features KID: the unbiased squared MMD (Binkowski et al., 2018, equation 4).

    The kernel is (x.y / d + 1)^3 as in the paper. All pairs are used instead of random subsets, so that the value is
    deterministic.

    Args:
        real: (M, d).
        generated: (N, d).

    Returns:
        The distance; for images of the same distribution it is negative about as often as positive.

    Raises:
        SettingError: there are fewer than two real or generated images.
    """
    check_count("the kernel distance", min(len(real), len(generated)), 2)
    real, generated = _double(real), _double(generated)
    return _kernel_mean(real) + _kernel_mean(generated) - 2 * _kernel_mean(real, generated)


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019, equations 1 and 2).

    The manifold of a set is the union of the balls around its images, whose radii are the distances to the k-th
    neighbours in the set.

    Args:
        real: (M, d).
        generated: (N, d).
        k: number of the neighbour, at least 1.

    Returns:
        precision, the share of generated images in the manifold of the real ones, and recall, the share of real images
        in the manifold of the generated ones.

    Raises:
        SettingError: a set has no more than k images.
    """
    check_count("precision and recall", min(len(real), len(generated)), k + 1)
    real, generated = _double(real), _double(generated)
    return _share_inside(generated, real, k), _share_inside(real, generated, k)


def _distance(mean_1: Tensor, root_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    spectrum = torch.linalg.eigvalsh(root_1 @ cov_2 @ root_1).clamp(min=0)
    traces = root_1.square().sum() + cov_2.trace() - 2 * spectrum.sqrt().sum()
    return max(0.0, float((mean_1 - mean_2).square().sum() + traces))


def _root(covariance: Tensor) -> Tensor:
    spectrum, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * spectrum.clamp(min=0).sqrt()) @ vectors.T
    return root


def _kernel_mean(x: Tensor, y: Tensor | None = None) -> float:
    """Mean kernel of all pairs of x and y, or of all pairs of two different rows of x."""
    total = sum(float(poly_kernel(block, x if y is None else y).sum()) for block in torch.split(x, BLOCK))
    if y is not None:
        return total / (len(x) * len(y))
    diagonal = float(((x.square().sum(dim=1) / x.shape[1] + 1) ** 3).sum())
    return (total - diagonal) / (len(x) * (len(x) - 1))


def _share_inside(images: Tensor, others: Tensor, k: int) -> float:
    # each image is its own nearest neighbour, hence k + 1
    radii = torch.cat([torch.cdist(block, others).kthvalue(k + 1).values for block in torch.split(others, BLOCK)])
    inside = [(torch.cdist(block, others) <= radii).any(dim=1) for block in torch.split(images, BLOCK)]
    return float(torch.cat(inside).double().mean())


def _double(values: Tensor) -> Tensor:
    return values.detach().cpu().double()
