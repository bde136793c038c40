"""Measures of generated images from a classifier's labels."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dng_lightning.errors import SettingError


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, 1927): its lower and upper bound in [0, 1]; (0, 1) for no trials."""
    from scipy.stats import binomtest  # takes a second to import

    if trials == 0:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def forbidden_rate(counts: Sequence[int], forbidden: Collection[int]) -> tuple[float, float, float]:
    """Share of the forbidden classes and its 95 % Wilson interval.

    Args:
        counts: generated images of each class, at least one in total.
        forbidden: forbidden labels.
    """
    hits, total = sum(counts[label] for label in forbidden), sum(counts)
    return (hits / total, *wilson_interval(hits, total))


def kl_divergence(counts: Sequence[int], forbidden: Collection[int] = ()) -> float:
    """KL(target || generated) in nats; the target is uniform over the classes that are not forbidden.

    The direction is that of the authors' release, which sums over the retained classes; leaked images keep their share
    of the generated distribution, so that a leak increases the divergence. Half an image is added to each class
    (Krichevsky and Trofimov, 1981), so that an empty class gives a large but finite divergence.
    """
    return kl_to(counts, [0 if label in forbidden else 1 for label in range(len(counts))])


def kl_to(counts: Sequence[int], target: Sequence[float]) -> float:
    """`kl_divergence` to any ``target``: weights of the classes, >= 0, with at least one above 0."""
    total, whole = sum(counts) + len(counts) / 2, sum(target)
    pairs = zip(target, counts, strict=True)
    return sum(share * math.log(share * total / (whole * (count + 0.5))) for share, count in pairs if share) / whole


def kl_interval(
    counts: Sequence[int], forbidden: Collection[int] = (), draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of `kl_divergence`: the images are resampled with replacement; see `bootstrap_interval`.

    A class without images is empty in every resample: if a retained class is empty, the interval is too narrow, because
    it excludes the few images that other seeds may give.

    Raises:
        SettingError: there is no image.
    """
    resampled = _redrawn(counts, draws, np.random.default_rng(seed))
    return bootstrap_interval([kl_divergence(row, forbidden) for row in resampled], kl_divergence(counts, forbidden))


def kl_to_interval(
    counts: Sequence[int], target: Sequence[int], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of `kl_to` for a target of image counts: both are resampled independently.

    If both are of the same seeds, they are positively correlated, and the interval is too wide rather than too narrow.

    Raises:
        SettingError: there is no image in one of them.
    """
    generator = np.random.default_rng(seed)
    resampled = zip(_redrawn(counts, draws, generator), _redrawn(target, draws, generator), strict=True)
    return bootstrap_interval([kl_to(own, theirs) for own, theirs in resampled], kl_to(counts, target))


def _redrawn(counts: Sequence[int], draws: int, generator: np.random.Generator) -> list[list[int]]:
    check_count("the divergence's interval", sum(counts), 1)
    rows: list[list[int]] = generator.multinomial(sum(counts), np.array(counts) / sum(counts), draws).tolist()
    return rows


def bootstrap_interval(values: Sequence[float], point: float) -> tuple[float, float]:
    """95 % interval of a measure >= 0 with a positive finite-sample bias, such as a divergence.

    Resampling adds this bias a second time, so that all values may lie above the point estimate. They are shifted such
    that their mean is the point estimate: the interval shows the scatter over seeds, for comparisons at equal N, and
    keeps the bias.

    Args:
        values: the measure of each resample.
        point: the measure of the images.

    Returns:
        Lower bound, at least 0, and upper bound.
    """
    low, high = np.quantile(values, [0.025, 0.975]) - np.mean(values) + point
    return max(0.0, float(low)), float(high)


def check_count(what: str, n: int, least: int) -> None:
    """Refuse ``n`` images where ``what`` needs at least ``least``, with a SettingError."""
    if n < least:
        raise SettingError(f"{what} needs at least {least} images; got {n}: raise data.num_samples")


def total_variation(counts: Sequence[int], forbidden: Collection[int] = ()) -> float:
    """Half the L1 distance of the class distribution to the uniform one over the retained classes, in [0, 1]."""
    total, share = sum(counts), 1 / (len(counts) - len(set(forbidden)))
    return sum(abs(n / total - (0.0 if label in forbidden else share)) for label, n in enumerate(counts)) / 2


@dataclass(frozen=True)
class PosteriorQuality:
    """Quality of a tracked posterior as a forecast of which images are forbidden at the end.

    Attributes:
        auc: probability that a forbidden image has a higher posterior than an allowed one; None if all or none are
            forbidden.
        brier: mean squared error of the posterior as a forecast (Brier, 1950), in [0, 1]; 0 is best.
        curve: (mean posterior, share forbidden, images) of each bin that has images; the two are equal if calibrated.
    """

    auc: float | None
    brier: float
    curve: list[tuple[float, float, int]]


def posterior_quality(posterior: Tensor, is_forbidden: Tensor, bins: int = 10) -> PosteriorQuality:
    """Evaluate a posterior against the labels of the final images.

    Args:
        posterior: probability of being forbidden, (N,), in [0, 1] up to rounding.
        is_forbidden: whether each final image is forbidden, bool (N,).
        bins: number of equally wide bins of the calibration curve in [0, 1].

    Raises:
        SettingError: there is no image.
    """
    from sklearn.metrics import roc_auc_score  # takes a second to import

    check_count("the posterior's quality", len(posterior), 1)
    predicted, observed = posterior.detach().cpu().double().clamp(0, 1), is_forbidden.cpu().double()
    place = (predicted * bins).long().clamp(max=bins - 1)
    sizes, predictions, shares = (
        torch.bincount(place, weights, bins).tolist() for weights in (None, predicted, observed)
    )
    return PosteriorQuality(
        auc=float(roc_auc_score(observed.numpy(), predicted.numpy())) if 0 < observed.mean() < 1 else None,
        brier=float((predicted - observed).square().mean()),
        curve=[(p / n, s / n, n) for n, p, s in zip(sizes, predictions, shares, strict=True) if n],
    )
