"""Data classes of an evaluation: a run, its batches of samples, their labels, and the cost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EvaluationRun:
    """A method with its settings, which draws an image for each seed.

    Attributes:
        method: name of the method.
        settings: non-default settings of the method, and the networks that only it needs, as JSON.
        scale: guidance scale; None for a method without a scale, and for a reference.
    """

    method: str
    settings: str
    scale: float | None = None

    @classmethod
    def reference(cls, method: str, **networks: str) -> "EvaluationRun":
        """A run that other methods are compared with; ``networks`` are those that only it needs."""
        return cls(method, json.dumps({"class": method} | networks))

    @property
    def label(self) -> str:
        """The method and its scale."""
        return self.method if self.scale is None else f"{self.method} {self.scale}"


@dataclass(frozen=True)
class Samples:
    """A batch of images with their trajectories.

    Attributes:
        seeds: seed of each image.
        images: x_0, (B, C, H, W), about [-1, 1], not clamped.
        times: t / T of the level that each step starts from, (S,), falling from 1.
        scale: guidance scale at each step, (B, S).
        posterior: posterior of each forbidden condition before each step, (B, S, K); None without a posterior.
        nfe: network evaluations per image.
    """

    seeds: Sequence[int]
    images: Tensor
    times: Sequence[float]
    scale: Tensor
    posterior: Tensor | None
    nfe: float


@dataclass(frozen=True)
class Labels:
    """Output of a classifier for a batch of images.

    Attributes:
        labels: label of each image, (B,).
        confidence: probability of the label, (B,).
        attributes: all attributes of the images, (B, ...); None for a classifier of labels only.
    """

    labels: Tensor
    confidence: Tensor
    attributes: Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """Cost of the images of a run.

    Attributes:
        nfe: network evaluations per image.
        images_per_second: speed of all devices together.
        memory_mb: peak of the allocated CUDA memory on the first device, MiB; None without CUDA.
    """

    nfe: float
    images_per_second: float
    memory_mb: float | None = None

    def columns(self, passed: float = 1.0) -> dict[str, float | None]:
        """Columns of ``results.csv`` per kept image, where the share ``passed`` of the images is kept."""
        speed = passed * self.images_per_second
        return {"nfe": self.nfe / passed, "images_per_second": speed, "memory_mb": self.memory_mb}
