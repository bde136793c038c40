import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dng_lightning.evaluation import measures, sample_store
from dng_lightning.evaluation.class_balance import kl_divergence, kl_interval, kl_to, total_variation, wilson_interval
from dng_lightning.evaluation.distribution_metrics import (
    frechet_distance,
    frechet_interval,
    kernel_distance,
    precision_recall,
)
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.evaluation.measures import LEAST, measure, per_class
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.evaluation.sample_store import SampleStore

CLASSES, FORBIDDEN, WIDTH = 4, [1], 6
KINDS = LabelSpace.of_classes("abcd", FORBIDDEN)
LABELS = torch.tensor([0, 1, 2, 3] * 20 + [0] * 15 + [1] * 5)
N = len(LABELS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(folder: Path, labels: Tensor = LABELS, seed: int = 1, pixels: Tensor | None = None) -> SampleStore:
    features = normal(len(labels), WIDTH, seed=seed) + labels.unsqueeze(1)
    pixels = torch.full((len(labels), 1, 4, 4), 100, dtype=torch.uint8) if pixels is None else pixels
    found = SampleStore(folder / str(seed), range(len(labels)))
    found.write(range(len(labels)), pixels=pixels, labels=labels, features=features)
    found.merge()
    return found


@pytest.fixture
def real() -> ReferenceStatistics:
    """A hundred images a class, of which all features are kept, exact in half precision."""
    labels = torch.arange(CLASSES).repeat_interleave(100)
    features = (normal(400, WIDTH) + labels.unsqueeze(1)).half().double()
    parts = [features[labels == label] for label in range(CLASSES)]
    return ReferenceStatistics(
        data="Any",
        extractor="any",
        fingerprint="",
        class_names=("a", "b", "c", "d"),
        image_shape=(1, 4, 4),
        counts=torch.tensor([100] * CLASSES),
        means=torch.stack([part.mean(0) for part in parts]),
        covariances=torch.stack([part.T.cov() for part in parts]).float(),
        samples=features.half(),
        sample_labels=labels,
        confusion=torch.eye(CLASSES).long(),
    )


def expected_quality(features: Tensor, real: ReferenceStatistics, labels: list[int]) -> dict[str, float]:
    theirs, features = real.features(labels).double(), features.double()
    distance = frechet_distance(features.mean(0), features.T.cov(), theirs.mean(0), theirs.T.cov())
    low, high = frechet_interval(features, theirs.mean(0), theirs.T.cov())
    everything = real.samples.double()
    whole = frechet_distance(features.mean(0), features.T.cov(), everything.mean(0), everything.T.cov())
    precision, recall = precision_recall(theirs, features)
    kid = kernel_distance(theirs, features)
    names = ("fd_retained", "fd_retained_low", "fd_retained_high", "fd_all", "kid", "precision", "recall")
    return dict(zip(names, (distance, low, high, whole, kid, precision, recall), strict=True))


def check(found: dict[str, Any], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("block", [7, 1000])
def test_every_measure_by_itself(
    block: int, real: ReferenceStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sample_store, "BLOCK", block)
    own = images(tmp_path)
    found = measure(own, own, real, KINDS)
    counts = [35, 25, 20, 20]
    low, high = wilson_interval(25, 100)
    kl_low, kl_high = kl_interval(counts, FORBIDDEN)
    check(found, {"n": 100, "forbidden_rate": 0.25, "forbidden_rate_low": low, "forbidden_rate_high": high})
    check(
        found, {"kl_retained": kl_divergence(counts, FORBIDDEN), "kl_retained_low": kl_low, "kl_retained_high": kl_high}
    )
    check(found, {"kl_all": kl_divergence(counts), "tv": total_variation(counts, FORBIDDEN)})
    check(found, {"kl_unguided": kl_to(counts, [35, 0, 20, 20])})
    assert found["kl_unguided_low"] < found["kl_unguided"] < found["kl_unguided_high"]
    assert found["class_counts"] == "35 25 20 20"
    check(found, expected_quality(own.all("features"), real, [0, 2, 3]))
    assert found["fd_all"] < found["fd_retained"]
    assert found["rmse_to_unguided"] == found["feature_distance_to_unguided"] == 0
    json.dumps(found)  # plain numbers


@pytest.mark.parametrize("block", [7, 1000])
def test_rejection_drops_exactly_the_forbidden(
    block: int, real: ReferenceStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sample_store, "BLOCK", block)
    own = images(tmp_path)
    found = measure(own, own, real, KINDS, reject=True)
    assert (found["n"], found["forbidden_rate"], found["class_counts"]) == (75, 0, "35 0 20 20")
    assert not {"forbidden_rate_low", "forbidden_rate_high", "kl_unguided"} & set(found)  # the filter is its own judge
    check(found, {"kl_retained": kl_divergence([35, 0, 20, 20], FORBIDDEN)})
    check(found, expected_quality(own.all("features")[LABELS != 1], real, [0, 2, 3]))


def test_two_forbidden_classes(real: ReferenceStatistics, tmp_path: Path):
    own = images(tmp_path)
    found = measure(own, own, real, LabelSpace.of_classes("abcd", [3, 1]))
    check(found, {"forbidden_rate": 0.45, "kl_retained": kl_divergence([35, 25, 20, 20], [1, 3])})
    check(found, expected_quality(own.all("features"), real, [0, 2]))


@pytest.mark.parametrize("block", [7, 1000])
def test_invasiveness_is_how_far_images_moved_that_needed_not(
    block: int, real: ReferenceStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Half of a fine image's pixels move by 51 of 255, a forbidden one's all the way; what it became does not count."""
    monkeypatch.setattr(sample_store, "BLOCK", block)
    before = torch.full((N, 1, 4, 4), 100, dtype=torch.uint8)
    after = before.clone()
    after[:, :, :2] += 51
    after[LABELS == 1] = 255
    unguided, own = images(tmp_path, pixels=before), images(tmp_path, LABELS.roll(1), seed=2, pixels=after)
    found = measure(own, unguided, real, KINDS)
    moved = (own.all("features") - unguided.all("features")).norm(dim=1)[LABELS != 1].mean()
    check(found, {"rmse_to_unguided": 0.2 * 0.5**0.5, "feature_distance_to_unguided": float(moved)})


def test_no_distance_to_unguided_where_all_were_forbidden(real: ReferenceStatistics, tmp_path: Path):
    found = measure(images(tmp_path), images(tmp_path, torch.ones(N).long(), seed=2), real, KINDS)
    assert "rmse_to_unguided" not in found


def test_without_real_images(tmp_path: Path):
    own = SampleStore(tmp_path, range(N))
    own.write(range(N), pixels=torch.zeros(N, 1, 4, 4).byte(), labels=LABELS)
    own.merge()
    found = measure(own, own, None, KINDS)
    assert found["forbidden_rate"] == 0.25
    assert found["rmse_to_unguided"] == 0
    assert not {"fd_retained", "kid", "precision", "feature_distance_to_unguided"} & set(found)


@pytest.mark.parametrize("left", [1, 2, 3, 4])
def test_what_few_images_do_not_allow_is_left_out(left: int, real: ReferenceStatistics, tmp_path: Path):
    own = images(tmp_path, torch.tensor([2] * left + [1] * 6))
    found = measure(own, own, real, KINDS, reject=True)
    assert found["n"] == left
    assert ({"fd_retained", "kid", "precision", "recall"} <= set(found)) == (left >= LEAST)
    assert "kl_retained_low" in found


def test_features_held_at_once_are_bounded(real: ReferenceStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The Fréchet distance takes all images; what compares each with each takes the first, which give no interval."""
    monkeypatch.setattr(sample_store, "BLOCK", 8)
    monkeypatch.setattr(measures, "COMPARED", 30)
    own = images(tmp_path)
    found = measure(own, own, real, KINDS)
    check(found, {"fd_retained": expected_quality(own.all("features"), real, [0, 2, 3])["fd_retained"]})
    first = expected_quality(own.all("features")[:30], real, [0, 2, 3])
    check(found, {name: first[name] for name in ("kid", "precision", "recall")})
    assert not {"fd_retained_low", "fd_retained_high"} & set(found)
    monkeypatch.setattr(measures, "COMPARED", N)
    found = measure(own, own, real, KINDS)
    assert found["fd_retained_low"] < found["fd_retained"] < found["fd_retained_high"]


def test_wide_features_have_no_interval(real: ReferenceStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It would take hours in Inception's 2,048 dimensions."""
    own = images(tmp_path)
    monkeypatch.setattr(measures, "WIDEST", WIDTH - 1)
    found = measure(own, own, real, KINDS)
    assert "fd_retained" in found
    assert not {"fd_retained_low", "fd_retained_high"} & set(found)


def test_a_row_for_each_class(real: ReferenceStatistics, tmp_path: Path):
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 4 + [0] * 3)
    own = images(tmp_path, labels)
    rows = per_class(own, real, ["a", "b", "c", "d"])
    assert [row["class"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["share"] for row in rows] == pytest.approx([53 / 60, 3 / 60, 4 / 60, 0])
    assert ["kid" in row for row in rows] == [True, False, True, False]
    for label in (0, 2):
        features, theirs = own.all("features")[labels == label], real.features([label])
        precision, recall = precision_recall(theirs, features)
        check(rows[label], {"kid": kernel_distance(theirs, features), "precision": precision, "recall": recall})
    assert all(set(row) == {"class", "share"} for row in per_class(own, None, ["a", "b", "c", "d"]))
