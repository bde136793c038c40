"""Reference statistics of real images, so that an evaluation needs no data set."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from tqdm import tqdm

from dng_lightning.data.base import ImageDataModule
from dng_lightning.data.loading import ImageTensors
from dng_lightning.data.pixels import to_float
from dng_lightning.errors import SettingError, reason
from dng_lightning.evaluation.distribution_metrics import Moments
from dng_lightning.evaluation.features import FeatureExtractor, Judge
from dng_lightning.storage import safe_checkpoint

SAMPLES = 500  # most images of a class whose features are stored
HALF_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class ReferenceStatistics:
    """Statistics of the features of a data set's training images, for each class.

    Attributes:
        data: name of the data set.
        extractor: name of the feature extractor.
        fingerprint: hash of its weights.
        class_names: K class names.
        image_shape: (C, H, W).
        counts: training images of each class, int64 (K,).
        means: float64 (K, d).
        covariances: unbiased, float32 (K, d, d); zero for a class of fewer than two images.
        samples: features of some images, evenly chosen from each class, float16 (M, d).
        sample_labels: their classes, int64 (M,).
        confusion: counts of test images by true class (rows) and the classifier's label (columns), int64 (K, K).
    """

    data: str
    extractor: str
    fingerprint: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    counts: Tensor
    means: Tensor
    covariances: Tensor
    samples: Tensor
    sample_labels: Tensor
    confusion: Tensor

    @classmethod
    def compute(
        cls, data: ImageDataModule, extractor: FeatureExtractor, classifier: Judge, batch_size: int = 500
    ) -> Self:
        """Compute the features of the training images, and the classifier's confusion matrix on the test images.

        Args:
            data: data set, after ``setup``.
            extractor: feature extractor, on its device.
            classifier: classifier of the same classes.
            batch_size: images per batch.

        Raises:
            SettingError: the classifier has other classes, or the features exceed half precision.
        """
        names = tuple(data.class_names)
        if tuple(classifier.class_names) != names:
            raise SettingError(f"the classifier was trained on other classes than those of {data.title}")
        train = data.part("train")
        kept = _evenly_chosen(train.labels, len(names))
        moments = [Moments() for _ in names]
        samples = []
        for pixels, labels, places in _batches(train, batch_size, f"features of {data.title}"):
            features = extractor(pixels).cpu()
            for label in set(labels.tolist()):
                moments[label].update(features[labels == label])
            samples.append(features[kept[places]])
        if (largest := float(torch.cat(samples).abs().max())) > HALF_MAX:
            raise SettingError(f"features of {extractor.name} reach {largest:.3g}, half precision holds {HALF_MAX:.0f}")
        nothing = torch.zeros(extractor.num_features, dtype=torch.float64)
        covariances = torch.stack([part.covariance if part.n > 1 else nothing.diag() for part in moments])
        return cls(
            data=data.title,
            extractor=extractor.name,
            fingerprint=extractor.fingerprint,
            class_names=names,
            image_shape=tuple(data.image_shape),
            counts=torch.tensor([part.n for part in moments]),
            means=torch.stack([part.mean if part.n else nothing for part in moments]),
            covariances=_full(_upper(covariances.float())),  # symmetric, as after loading
            samples=torch.cat(samples).half(),
            sample_labels=train.labels[kept],
            confusion=_confusion(data, extractor, classifier, batch_size),
        )

    @classmethod
    def cached(cls, path: Path, data: ImageDataModule, extractor: FeatureExtractor, classifier: Judge) -> Self:
        """The statistics in a file if its images and features match, with a new confusion matrix; else new statistics.

        Args:
            path: path of the file, which may be missing.
            data: see ``compute``.
            extractor: see ``compute``.
            classifier: see ``compute``.

        Raises:
            SettingError: see ``compute``, or the file is damaged.
        """
        kept = cls.load(path) if path.exists() else None
        counts = torch.bincount(data.part("train").labels, minlength=len(data.class_names))
        ours = (data.title, tuple(data.image_shape), extractor.name, extractor.fingerprint, counts.tolist())
        if kept and (kept.data, kept.image_shape, kept.extractor, kept.fingerprint, kept.counts.tolist()) == ours:
            return replace(kept, confusion=_confusion(data, extractor, classifier))
        return cls.compute(data, extractor, classifier)

    def moments(self, labels: Collection[int]) -> tuple[int, Tensor, Tensor]:
        """Count, mean (d,) and covariance (d, d) of the images of several classes together, float64.

        Raises:
            SettingError: there are fewer than two images.
        """
        union = Moments()
        for label in set(labels):
            if n := int(self.counts[label]):
                union.merge(n, self.means[label], self.covariances[label].double() * (n - 1))
        if union.n < 2:
            named = ", ".join(self.class_names[label] for label in labels)
            raise SettingError(f"the statistics of {self.data} have {union.n} real images of {named}: make them anew")
        return union.n, union.mean, union.covariance

    def features(self, labels: Collection[int]) -> Tensor:
        """The stored features of several classes, float32 (m, d)."""
        return self.samples[torch.isin(self.sample_labels, torch.tensor(list(labels)))].float()

    def floor(self, forbidden: Collection[int]) -> tuple[int, int]:
        """Number of test images of the retained classes that the classifier labels as forbidden, and their total."""
        retained = [label for label in range(len(self.class_names)) if label not in forbidden]
        rows = self.confusion[retained]
        return int(rows[:, list(forbidden)].sum()), int(rows.sum())

    def check(self, class_names: Collection[str], image_shape: Collection[int], extractor: FeatureExtractor) -> None:
        """Check that the statistics match a model and a feature extractor.

        Raises:
            SettingError: the classes, the image shape or the features differ.
        """
        mend = "make them anew from that data set with --data.reference_data"
        shape, width = tuple(image_shape), self.means.shape[1]
        problems = {
            f"are of {self.data}, which has other classes than the model": self.class_names != tuple(class_names),
            f"are of {self.data}, of images {self.image_shape} instead of {shape}": self.image_shape != shape,
            f"hold features of {self.extractor}, not of {extractor.name}": self.extractor != extractor.name,
            f"hold {width} features instead of {extractor.num_features}": width != extractor.num_features,
            f"were made with other weights of {extractor.name}": self.fingerprint != extractor.fingerprint,
        }
        for problem in (problem for problem, is_there in problems.items() if is_there):
            raise SettingError(f"the statistics {problem}: {mend}")

    def save(self, path: str | Path) -> None:
        """Write a ``.pt`` of plain tensors and strings, with the upper triangles of the covariances."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        safe_checkpoint.write_ckpt(self.__dict__ | {"covariances": _upper(self.covariances)}, Path(path))

    @staticmethod
    def file(extractor: FeatureExtractor) -> str:
        """File name of the statistics of an extractor."""
        return f"real-{extractor.name}.pt"

    @classmethod
    def find(cls, folders: Sequence[Path], extractor: FeatureExtractor) -> Self:
        """The statistics in the first folder that has their file.

        Raises:
            SettingError: no folder has one.
        """
        for folder in folders:
            if (path := folder / cls.file(extractor)).exists():
                return cls.load(path)
        raise SettingError(
            f"no statistics of real images at {folders[-1] / cls.file(extractor)}: name their data set, such as "
            "--data.reference_data MNIST, or go without by --trainer.callbacks.features null"
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file of ``save``.

        Raises:
            SettingError: the file is missing or damaged, or contains code or other data.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            statistics = cls(**content | {"covariances": _full(content["covariances"])})
            classes, width, kept = len(statistics.class_names), statistics.means.shape[1], len(statistics.sample_labels)
            shapes = [tuple(value.shape) for value in vars(statistics).values() if isinstance(value, Tensor)]
            expected = [(classes, width), (classes, width, width), (kept, width), (kept,), (classes, classes)]
            if shapes != [(classes,), *expected]:
                raise ValueError(f"tensors of {shapes}")
        except Exception as error:  # a foreign file can fail in any way
            raise SettingError(f"{path} holds no statistics of real images: {reason(error)}") from error
        return statistics


def _batches(images: ImageTensors, size: int, what: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of pixels, labels and indices, in order."""
    with tqdm(total=len(images), unit=" images", desc=what, leave=False, disable=None) as bar:
        for places in torch.split(torch.arange(len(images)), size):
            yield *images[places], places
            bar.update(len(places))


def _confusion(data: ImageDataModule, extractor: FeatureExtractor, classifier: Judge, batch_size: int = 500) -> Tensor:
    """Counts of test images by true class (rows) and the classifier's label (columns), int64 (K, K)."""
    classes = len(data.class_names)
    confusion = torch.zeros(classes**2, dtype=torch.int64)
    for pixels, labels, _ in _batches(data.part("test"), batch_size, "classifier's errors"):
        seen = classifier.label(to_float(pixels.to(extractor.device))).labels.cpu()
        confusion += torch.bincount(labels * classes + seen, minlength=len(confusion))
    return confusion.view(classes, classes)


def _evenly_chosen(labels: Tensor, classes: int) -> Tensor:
    """Choice of at most SAMPLES evenly spaced images of each class, bool (N,)."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(classes):
        places = (labels == label).nonzero()[:, 0]
        count = min(SAMPLES, len(places))
        chosen[places[torch.arange(count) * len(places) // max(count, 1)]] = True
    return chosen


def _upper(covariances: Tensor) -> Tensor:
    """(..., d, d) -> (..., d (d + 1) / 2)."""
    rows, columns = torch.triu_indices(*covariances.shape[-2:])
    return covariances[..., rows, columns]


def _full(upper: Tensor) -> Tensor:
    """The inverse of `_upper`: (K, d (d + 1) / 2) -> (K, d, d)."""
    d = int((2 * upper.shape[1]) ** 0.5)  # d^2 < 2 * d (d + 1) / 2 < (d + 1)^2
    rows, columns = torch.triu_indices(d, d)
    covariances = upper.new_empty(len(upper), d, d)
    covariances[:, rows, columns] = upper
    covariances[:, columns, rows] = upper
    return covariances
