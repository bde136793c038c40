from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dng_lightning.data import Digits
from dng_lightning.data.pixels import to_float
from dng_lightning.errors import SettingError
from dng_lightning.evaluation import reference_statistics
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.evaluation.runs import Labels
from dng_lightning.modules.classifier import ClassifierModule

CLASSIFIER = ClassifierModule.load("digits-classifier")
EXTRACTOR = ClassifierFeatures(CLASSIFIER, "digits-classifier")


def digits(**settings: Any) -> Digits:
    data = Digits(**settings)
    data.setup()
    return data


DATA = digits()
TRAIN, TEST = DATA.part("train"), DATA.part("test")


@pytest.fixture(scope="module")
def statistics() -> ReferenceStatistics:
    return ReferenceStatistics.compute(DATA, EXTRACTOR, CLASSIFIER)


def features_of(labels: list[int]) -> Tensor:
    return EXTRACTOR(TRAIN.images[torch.isin(TRAIN.labels, torch.tensor(labels))]).double()


# --- what they say ---


@pytest.mark.parametrize("labels", [[3], [1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 0], list(range(10))])
def test_the_moments_of_classes_are_those_of_their_images_together(statistics: ReferenceStatistics, labels: list[int]):
    n, mean, covariance = statistics.moments(labels)
    features = features_of(labels)
    assert n == len(features)
    assert covariance.dtype == torch.float64
    torch.testing.assert_close(mean, features.mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(covariance, features.T.cov(), rtol=0, atol=1e-6)
    assert torch.equal(statistics.moments([*labels, labels[0]])[1], mean)  # naming a class twice changes nothing


def test_samples_are_evenly_chosen_from_each_class(monkeypatch: pytest.MonkeyPatch, statistics: ReferenceStatistics):
    everything = statistics.features([4])
    torch.testing.assert_close(everything, features_of([4]).float(), rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(reference_statistics, "SAMPLES", 20)
    few = ReferenceStatistics.compute(DATA, EXTRACTOR, CLASSIFIER)
    assert few.sample_labels.bincount().tolist() == [20] * 10
    assert few.features([4, 7]).shape == (40, EXTRACTOR.num_features)
    assert few.features([4]).dtype == torch.float32
    places = torch.tensor([i * len(everything) // 20 for i in range(20)])
    torch.testing.assert_close(few.features([4]), everything[places], rtol=1e-3, atol=1e-3)


def test_the_floor_is_how_often_retained_test_images_are_called_forbidden(statistics: ReferenceStatistics):
    seen = CLASSIFIER.label(to_float(TEST.images)).labels
    assert int(statistics.confusion.sum()) == 300
    for forbidden in ([8], [1, 8]):
        retained = ~torch.isin(TEST.labels, torch.tensor(forbidden))
        called = torch.isin(seen[retained], torch.tensor(forbidden))
        assert statistics.floor(forbidden) == (int(called.sum()), int(retained.sum()))
    confused = replace(
        statistics, confusion=torch.tensor([[5, 1, 2], [3, 9, 4], [6, 7, 8]]), class_names=("a", "b", "c")
    )
    assert confused.floor([0]) == (3 + 6, 3 + 9 + 4 + 6 + 7 + 8)
    assert confused.floor([0, 2]) == (3 + 4, 3 + 9 + 4)


def test_the_batch_size_does_not_matter(statistics: ReferenceStatistics):
    other = ReferenceStatistics.compute(DATA, EXTRACTOR, CLASSIFIER, batch_size=97)
    assert torch.equal(other.counts, statistics.counts)
    assert torch.equal(other.confusion, statistics.confusion)
    assert torch.equal(other.sample_labels, statistics.sample_labels)
    torch.testing.assert_close(other.means, statistics.means, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.covariances, statistics.covariances, rtol=0, atol=1e-6)


def test_a_class_without_images():
    statistics = ReferenceStatistics.compute(digits(exclude_classes=[0]), EXTRACTOR, CLASSIFIER)
    assert int(statistics.counts[0]) == 0
    assert torch.equal(statistics.moments(range(10))[2], statistics.moments(range(1, 10))[2])
    assert len(statistics.features([0])) == 0
    with pytest.raises(SettingError, match=r"^the statistics of Digits have 0 real images of 0: make them anew"):
        statistics.moments([0])


def test_what_cannot_be_computed():
    other = SimpleNamespace(class_names=("cat", "dog"))
    with pytest.raises(SettingError, match=r"^the classifier was trained on other classes than those of Digits$"):
        ReferenceStatistics.compute(DATA, EXTRACTOR, other)  # type: ignore[arg-type]
    huge = ClassifierFeatures(CLASSIFIER, "huge")
    huge._extract = lambda pixels, dtype: 1e6 * EXTRACTOR(pixels)  # type: ignore[method-assign]
    with pytest.raises(SettingError, match=r"^features of huge reach .*e\+0\d, half precision holds 65504$"):
        ReferenceStatistics.compute(DATA, huge, CLASSIFIER)


# --- files ---


def test_a_file_gives_back_everything(statistics: ReferenceStatistics, tmp_path: Path):
    statistics.save(tmp_path / "new" / "real.pt")
    loaded = ReferenceStatistics.load(tmp_path / "new" / "real.pt")
    for name, value in vars(statistics).items():
        same = (
            torch.equal(value, getattr(loaded, name)) if isinstance(value, Tensor) else value == getattr(loaded, name)
        )
        assert same, name
    assert loaded.means.dtype == torch.float64
    assert loaded.samples.dtype == torch.float16


def test_ten_classes_in_128_dimensions_take_less_than_two_megabytes(statistics: ReferenceStatistics, tmp_path: Path):
    full = replace(
        statistics,
        means=torch.rand(10, 128).double(),
        covariances=torch.rand(10, 128, 128),
        samples=torch.rand(5000, 128).half(),
        sample_labels=torch.arange(5000) % 10,
    )
    full.save(tmp_path / "real.pt")
    assert (tmp_path / "real.pt").stat().st_size < 2e6


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this code ran",)


def test_files_of_something_else(statistics: ReferenceStatistics, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "real.pt"
    statistics.save(path)
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    shorter, without = content | {"means": content["means"][:, :5]}, {k: v for k, v in content.items() if k != "data"}
    for foreign in (None, b"", whole[:1000], b"hello", {}, [1], {"data": Code()}, shorter, without, content | {"x": 1}):
        path.unlink(missing_ok=True)
        if isinstance(foreign, bytes):
            path.write_bytes(foreign)
        elif foreign is not None:
            torch.save(foreign, path)
        with pytest.raises(SettingError, match=r"^.*real\.pt holds no statistics of real images: [^\n]+$"):
            ReferenceStatistics.load(path)
    assert "this code ran" not in capsys.readouterr().out


class Counting:
    """An extractor that counts the images it sees."""

    def __init__(self) -> None:
        self.name, self.num_features, self.fingerprint = EXTRACTOR.name, EXTRACTOR.num_features, EXTRACTOR.fingerprint
        self.images, self.device = 0, EXTRACTOR.device

    def __call__(self, pixels: Tensor) -> Tensor:
        self.images += len(pixels)
        return EXTRACTOR(pixels)


def test_features_of_real_images_are_taken_once(statistics: ReferenceStatistics, tmp_path: Path):
    path, extractor, wrong = tmp_path / "real.pt", Counting(), ClassifierModule.load("digits-classifier")
    wrong.label = lambda x: Labels(torch.zeros(len(x), dtype=torch.long), torch.ones(len(x)))  # type: ignore[method-assign]
    ReferenceStatistics.cached(path, DATA, extractor, CLASSIFIER).save(path)  # type: ignore[arg-type]
    assert extractor.images == len(TRAIN)
    again = ReferenceStatistics.cached(path, DATA, extractor, wrong)  # type: ignore[arg-type]
    assert extractor.images == len(TRAIN)
    assert torch.equal(again.covariances, statistics.covariances)
    assert torch.equal(again.confusion[:, 0], TEST.labels.bincount())  # of the classifier at hand, not of the file's
    assert int(again.confusion.sum()) == len(TEST)
    everything = digits(val_size=0)
    assert int(ReferenceStatistics.cached(path, everything, extractor, CLASSIFIER).counts.sum()) == 1497  # type: ignore[arg-type]
    extractor.fingerprint = "other"
    ReferenceStatistics.cached(path, DATA, extractor, CLASSIFIER)  # type: ignore[arg-type]
    assert extractor.images == 2 * len(TRAIN) + 1497


# --- what they may be compared with ---


def test_they_fit_their_own_data_and_extractor(statistics: ReferenceStatistics):
    statistics.check(list(DATA.class_names), list(DATA.image_shape), EXTRACTOR)


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("are of Digits, which has other classes than the model", {"class_names": ["cat", *map(str, range(1, 10))]}),
        (r"are of Digits, of images \(1, 8, 8\) instead of \(3, 8, 8\)", {"image_shape": [3, 8, 8]}),
        ("hold features of digits-classifier, not of other", {"name": "other"}),
        (r"hold 128 features instead of 64", {"num_features": 64}),
        ("were made with other weights of digits-classifier", {"fingerprint": "0" * 12}),
    ],
)
def test_they_fit_nothing_else(statistics: ReferenceStatistics, line: str, changed: dict[str, Any]):
    own = {name: getattr(EXTRACTOR, name) for name in ("name", "num_features", "fingerprint")}
    own |= {"class_names": DATA.class_names, "image_shape": DATA.image_shape} | changed
    names, shape, extractor = own.pop("class_names"), own.pop("image_shape"), SimpleNamespace(**own)
    with pytest.raises(
        SettingError, match=rf"^the statistics {line}: make them anew from that data set with --data.reference_data$"
    ):
        statistics.check(names, shape, extractor)  # type: ignore[arg-type]
