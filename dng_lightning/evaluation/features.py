"""Feature extractors: named networks for real and generated images."""

import hashlib
from abc import ABC, abstractmethod
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from dng_lightning.data.pixels import to_float
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.runs import Labels


class Judge(Protocol):
    """Interface of classifiers that label images, such as ``ClassifierModule``."""

    @property
    def name(self) -> str:
        """Name of the classifier and of distances in its features."""

    @property
    def net(self) -> nn.Module:
        """The network."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""

    def label(self, x: Tensor) -> Labels:
        """Labels of images (B, C, H, W) in [-1, 1], on any device."""


class FeatureExtractor(ABC):
    """Maps pixels to features, in evaluation mode and without autocast.

    Not an ``nn.Module``, so that a LightningModule with an extractor does not train, average or store its weights.

    Attributes:
        name: name of the features in results.
        num_features: d.
        fingerprint: a short hash of the weights; features of different weights are not comparable.

    Args:
        name: see above.
        net: the network, on any device.
        num_features: d.
    """

    def __init__(self, name: str, net: nn.Module, num_features: int) -> None:
        self.name, self.num_features = name, num_features
        self.net = net
        self.fingerprint = fingerprint(net)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.net.parameters()).device

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of images, on the network's device.

        Args:
            pixels: uint8 (B, C, H, W), on any device.

        Returns:
            float32 (B, num_features).
        """
        weight = next(self.net.parameters())
        was_training = self.net.training
        self.net.eval()
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            features = self._extract(pixels.to(weight.device), weight.dtype).float()
        self.net.train(was_training)
        return features

    def to(self, device: torch.device | str) -> Self:
        """Move the network."""
        self.net.to(device)
        return self

    @abstractmethod
    def _extract(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, num_features) of any precision; ``dtype`` is that of the weights."""


class ClassifierFeatures(FeatureExtractor):
    """Penultimate layer of a classifier that was trained on the same data set.

    Args:
        module: classifier whose ``net`` has ``features(x)`` and ``num_features``, like `ImageClassifier`.
        name: name of its checkpoint; None for its own.

    Raises:
        SettingError: ``net`` lacks these.
    """

    def __init__(self, module: Judge, name: str | None = None) -> None:
        name = module.name if name is None else name
        if not (hasattr(module.net, "features") and hasattr(module.net, "num_features")):
            kind = type(module.net).__name__
            own = isinstance(module, nn.Module) and module.net is module  # a network of another library
            mend = "set its head, or take other features" if own else "give its net features(x), num_features"
            raise SettingError(f"the classifier {name} ({kind}) has no features: {mend}")
        super().__init__(name, module.net, int(module.net.num_features))  # type: ignore[arg-type]  # a module's is Any

    def _extract(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        features: Tensor = self.net.features(to_float(pixels).to(dtype))  # type: ignore[operator]  # checked above
        return features


def fingerprint(net: nn.Module) -> str:
    """Twelve hexadecimal digits that change with any weight."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
