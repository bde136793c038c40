"""The measures of one row of ``results.csv``."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from dng_lightning.evaluation import sample_store
from dng_lightning.evaluation.class_balance import (
    forbidden_rate,
    kl_divergence,
    kl_interval,
    kl_to,
    kl_to_interval,
    total_variation,
)
from dng_lightning.evaluation.distribution_metrics import (
    Moments,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    precision_recall,
)
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.evaluation.sample_store import SampleStore

LEAST = 4  # fewest images for all measures: each must have a third neighbour
COMPARED = 10_000  # most images whose features are held in memory at once, for KID, precision and recall
WIDEST = 256  # most dimensions for a Fréchet interval; with more it would take longer than the sampling


def measure(
    store: SampleStore,
    unguided: SampleStore | None,
    reference: ReferenceStatistics | None,
    label_space: LabelSpace,
    reject: bool = False,
) -> dict[str, Any]:
    """The measures of a set of images.

    With more than ``COMPARED`` images, KID, precision and recall use the first ``COMPARED``, and the Fréchet distances,
    which use all, have no interval.

    Args:
        store: the images.
        unguided: unguided images of the same seeds; None to leave out the distances to them, and the KL to the class
            balance of those that are not forbidden.
        reference: reference statistics; None to leave out the measures that need them.
        label_space: labels of the images.
        reject: first drop the images that the classifier labels as forbidden; at least one must be left. The forbidden
            rate is then 0 by construction, and has no interval.

    Returns:
        Columns of ``results.csv``, without Fréchet distances, KID, precision and recall for fewer than ``LEAST``
        images.
    """
    labels, classes = store.all("labels"), len(label_space.names)
    others = set(range(classes)) - set(label_space.retained)
    kept = ~label_space.are_forbidden(labels) if reject else torch.ones_like(labels, dtype=torch.bool)
    counts = torch.bincount(labels[kept], minlength=classes).tolist()
    rate, *bounds = forbidden_rate(counts, label_space.forbidden)

    # The balance of the classes
    measures: dict[str, Any] = {
        "n": sum(counts),
        **_columns("forbidden_rate", rate, () if reject else bounds),
        **_columns("kl_retained", kl_divergence(counts, others), kl_interval(counts, others)),
        "kl_all": kl_divergence(counts),
        "tv": total_variation(counts, others),
        "class_counts": " ".join(map(str, counts)),
    }
    if label_space.columns:
        measures |= label_space.measures(store.all("attributes")[kept])

    # Distances to real images, and to the unguided images
    if reference is not None and sum(counts) >= LEAST:
        measures |= _quality(store, kept, reference, sorted(label_space.retained))
    if unguided is not None:
        fine = ~label_space.are_forbidden(unguided.all("labels"))
        balance = torch.bincount(unguided.all("labels")[fine], minlength=classes).tolist()
        if any(balance) and not reject:  # rejection of unguided images gives this balance itself
            measures |= _columns("kl_unguided", kl_to(counts, balance), kl_to_interval(counts, balance))
        measures |= _distance_to_unguided(store, unguided, fine)
    return measures


def _quality(store: SampleStore, kept: Tensor, reference: ReferenceStatistics, retained: list[int]) -> dict[str, float]:
    """Fréchet distances, KID, precision and recall."""
    moments = Moments()
    held: list[Tensor] = []
    for features, own in zip(store.blocks("features"), torch.split(kept, sample_store.BLOCK), strict=True):
        moments.update(features[own])
        if sum(len(part) for part in held) < COMPARED:
            held.append(features[own])
    features = torch.cat(held)[:COMPARED]
    _, mean, covariance = reference.moments(retained)
    _, *of_all = reference.moments(range(len(reference.class_names)))
    all_in_memory = moments.n == len(features) and features.shape[1] <= WIDEST
    interval = frechet_interval(features, mean, covariance) if all_in_memory else ()
    return {
        **_columns("fd_retained", frechet_distance(moments.mean, moments.covariance, mean, covariance), interval),
        "fd_all": frechet_distance(moments.mean, moments.covariance, *of_all),
        **_neighbours(reference.features(retained), features),
    }


def _neighbours(real: Tensor, generated: Tensor) -> dict[str, float]:
    """KID, precision and recall of features."""
    precision, recall = precision_recall(real, generated)
    return {"kid": kernel_distance(real, generated), "precision": precision, "recall": recall}


def per_class(
    store: SampleStore, reference: ReferenceStatistics | None, class_names: Collection[str]
) -> list[dict[str, Any]]:
    """Share of each class, and its KID, precision and recall if it has ``LEAST`` images.

    The shares are of all images, the other measures of the first ``COMPARED``.
    """
    labels, rows = store.all("labels"), []
    for label, name in enumerate(class_names):
        row: dict[str, Any] = {"class": name, "share": float((labels == label).float().mean())}
        if reference is not None:
            features, real = store.first("features", COMPARED), reference.features([label])
            own = features[labels[: len(features)] == label]
            row |= _neighbours(real, own) if min(len(own), len(real)) >= LEAST else {}
        rows.append(row)
    return rows


def _distance_to_unguided(store: SampleStore, unguided: SampleStore, fine: Tensor) -> dict[str, float]:
    """Distance to the unguided images of the same seeds, over the ``fine`` ones, which are not forbidden.

    The root mean square difference of the pixels in [0, 1], and the Euclidean distance of the features, both averaged
    over the images.
    """
    if not bool(fine.any()):
        return {}

    def mean(name: str, distance: Callable[[Tensor], Tensor]) -> float:
        pairs = zip(store.blocks(name), unguided.blocks(name), strict=True)
        return float(torch.cat([distance(x.float() - x_0.float()) for x, x_0 in pairs])[fine].mean())

    moved = {"rmse_to_unguided": mean("pixels", lambda x: (x / 255).square().flatten(1).mean(1).sqrt())}
    if store.has("features"):
        moved["feature_distance_to_unguided"] = mean("features", lambda x: x.norm(dim=1))
    return moved


def _columns(name: str, value: float, interval: Collection[float]) -> dict[str, float]:
    """A measure and the bounds of its interval, which may be empty."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), (value, *interval), strict=False))
