"""What the images of one guidance are worth: every measure of a row of ``results.csv``."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from dng_lightning.evaluation.metrics import (
    forbidden_rate,
    kl_divergence,
    kl_interval,
    kl_to,
    kl_to_interval,
    total_variation,
)
from dng_lightning.evaluation.quality import (
    Moments,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    precision_recall,
)
from dng_lightning.evaluation.real import RealStatistics
from dng_lightning.evaluation.sample_store import SampleStore

LEAST = 4  # images that all measures together need: the third neighbour of one must exist
COMPARED = 10_000  # images at most whose features are held in memory at once, for what needs them together
WIDEST = 256  # dimensions of features that have a Fréchet interval; with more it would take longer than the images


def measure(
    drawn: SampleStore,
    unguided: SampleStore | None,
    real: RealStatistics | None,
    classes: int,
    forbidden: Collection[int],
    reject: bool = False,
    retained: Collection[int] | None = None,
) -> dict[str, Any]:
    """The measures of a set of images.

    From ``COMPARED`` + 1 images on, KID, precision and recall take the first ``COMPARED``, and the Fréchet distances,
    which take all, have no interval.

    Args:
        drawn: the images.
        unguided: those of the same seeds without guidance; None to leave out how far they moved, and whether the
            classes keep the balance that they had there among those that are not forbidden.
        real: what they are compared with; None to leave out what needs it.
        classes: number of them.
        forbidden: labels.
        reject: throw the images away that the classifier calls forbidden, first; one at least must be left. That none
            of these is forbidden is no finding, and has no interval.
        retained: labels of what the images shall be spread over evenly; None for all that are not forbidden.

    Returns:
        Columns of ``results.csv``, without those that fewer than ``LEAST`` images do not allow.
    """
    labels = drawn.all("labels")
    wanted = sorted(retained if retained is not None else set(range(classes)) - set(forbidden))
    others = set(range(classes)) - set(wanted)
    is_forbidden = torch.isin(labels, torch.tensor(sorted(forbidden)))
    kept = ~is_forbidden if reject else torch.ones_like(is_forbidden)
    counts = torch.bincount(labels[kept], minlength=classes).tolist()
    rate, low, high = forbidden_rate(counts, forbidden)
    interval = {} if reject else {"forbidden_low": low, "forbidden_high": high}
    kl_low, kl_high = kl_interval(counts, others)
    measures: dict[str, Any] = {
        "n": sum(counts),
        "forbidden": rate,
        **interval,
        "kl": kl_divergence(counts, others),
        "kl_low": kl_low,
        "kl_high": kl_high,
        "kl_uniform": kl_divergence(counts),
        "tv": total_variation(counts, others),
        "histogram": " ".join(map(str, counts)),
    }
    if real is not None and sum(counts) >= LEAST:
        measures |= _quality(drawn, kept, real, wanted)
    if unguided is None:
        return measures
    balance = {} if reject else _own_balance(counts, unguided, forbidden)  # that of rejection is the balance itself
    return measures | balance | _invasiveness(drawn, unguided, forbidden)


def _quality(drawn: SampleStore, kept: Tensor, real: RealStatistics, retained: list[int]) -> dict[str, float]:
    """Fréchet distances, KID, precision and recall."""
    moments, start = Moments(), 0
    held: list[Tensor] = []
    for features in drawn.blocks("features"):
        wanted = features[kept[start : start + len(features)]]
        moments.update(wanted)
        if sum(len(part) for part in held) < COMPARED:
            held.append(wanted)
        start += len(features)
    features = torch.cat(held)[:COMPARED]
    _, mean, covariance = real.moments(retained)
    _, mean_all, covariance_all = real.moments(range(len(real.class_names)))
    distance = frechet_distance(moments.mean, moments.covariance, mean, covariance)
    interval: dict[str, float] = {}
    if moments.n == len(features) and features.shape[1] <= WIDEST:  # that of the first images is not that of all
        low, high = frechet_interval(features, mean, covariance)
        interval = {"fd_low": low, "fd_high": high}
    precision, recall = precision_recall(real.features(retained), features)
    return {
        "fd_retained": distance,
        **interval,
        "fd_all": frechet_distance(moments.mean, moments.covariance, mean_all, covariance_all),
        "kid": kernel_distance(real.features(retained), features),
        "precision": precision,
        "recall": recall,
    }


def per_class(drawn: SampleStore, real: RealStatistics | None, class_names: Collection[str]) -> list[dict[str, Any]]:
    """Share, KID, precision and recall of each class by itself, where it has ``LEAST`` images.

    The shares are of all images, the rest is of the first ``COMPARED``.
    """
    labels = drawn.all("labels")
    features = drawn.first("features", COMPARED)
    rows = []
    for label, name in enumerate(class_names):
        own = features[labels[: len(features)] == label]
        row: dict[str, Any] = {"class": name, "share": float((labels == label).float().mean())}
        if real is not None and len(own) >= LEAST and len(theirs := real.features([label])) >= LEAST:
            precision, recall = precision_recall(theirs, own)
            row |= {"kid": kernel_distance(theirs, own), "precision": precision, "recall": recall}
        rows.append(row)
    return rows


def _own_balance(counts: list[int], unguided: SampleStore, forbidden: Collection[int]) -> dict[str, float]:
    """KL(unguided images that are not forbidden || generated): rejection draws the first, and guidance is to."""
    rest = torch.bincount(unguided.all("labels"), minlength=len(counts)).tolist()
    rest = [0 if label in forbidden else count for label, count in enumerate(rest)]
    if not any(rest):
        return {}
    low, high = kl_to_interval(counts, rest)
    return {"kl_own": kl_to(counts, rest), "kl_own_low": low, "kl_own_high": high}


def _invasiveness(drawn: SampleStore, unguided: SampleStore, forbidden: Collection[int]) -> dict[str, float]:
    """How far guidance moves the images that were never forbidden, beside the unguided ones of the same seeds.

    The root mean square difference of their pixels, of a range of 1, and the Euclidean distance of their features; both
    averaged over the images.
    """
    fine = ~torch.isin(unguided.all("labels"), torch.tensor(sorted(forbidden)))
    pixels, features, start = [], [], 0
    arrays = (drawn.blocks("pixels"), unguided.blocks("pixels"), drawn.blocks("features"), unguided.blocks("features"))
    for x, x_0, f, f_0 in zip(*arrays, strict=True):
        own = fine[start : start + len(x)]
        pixels.append(((x.float() - x_0.float()) / 255).square().flatten(1).mean(1).sqrt()[own])
        features.append((f - f_0).norm(dim=1)[own])
        start += len(x)
    if not bool(fine.any()):
        return {}
    moved = {"invasiveness": float(torch.cat(pixels).mean())}
    return moved | ({"invasiveness_features": float(torch.cat(features).mean())} if f.shape[1] else {})
