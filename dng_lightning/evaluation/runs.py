"""Data classes of an evaluation: a run, its batches of samples, their labels, and the cost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EvaluationRun:
    """One way to draw the seeds.

    Attributes:
        method: its name.
        settings: what differs from the method's defaults, and the networks that it alone needs, as JSON.
        scale: the guidance scale; None where it has none, and for a reference.
    """

    method: str
    settings: str
    scale: float | None = None

    @classmethod
    def reference(cls, method: str, **networks: str) -> "EvaluationRun":
        """A run that other methods are compared with, and the networks that it alone needs."""
        return cls(method, json.dumps({"class": method} | networks))

    @property
    def label(self) -> str:
        """The method and its scale."""
        return self.method if self.scale is None else f"{self.method} {self.scale}"


@dataclass(frozen=True)
class Samples:
    """Images, and how they came about.

    Attributes:
        seeds: one an image.
        images: x_0, (B, C, H, W), about [-1, 1], not clamped.
        times: t / T of the level that each step starts from, (S,), falling from 1.
        scale: guidance scale at each step, (B, S).
        posterior: of each forbidden condition before each step, (B, S, K); None without one.
        nfe: network evaluations an image.
    """

    seeds: Sequence[int]
    images: Tensor
    times: Sequence[float]
    scale: Tensor
    posterior: Tensor | None
    nfe: float


@dataclass(frozen=True)
class Labels:
    """What a classifier sees in images.

    Attributes:
        labels: (B,).
        confidence: the probability of that label, (B,).
        attributes: all that it reads in the images, (B, ...); None where the label is all.
    """

    labels: Tensor
    confidence: Tensor
    attributes: Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """What the images of a run cost.

    Attributes:
        nfe: network evaluations an image.
        images_per_second: on all devices together.
        memory_mb: most memory that CUDA handed out on the first device; None on other devices.
    """

    nfe: float
    images_per_second: float
    memory_mb: float | None = None

    def columns(self, passed: float = 1.0) -> dict[str, float | None]:
        """Columns of ``results.csv``, for each image of which a share ``passed`` is kept."""
        speed = passed * self.images_per_second
        return {"nfe": self.nfe / passed, "images_per_second": speed, "memory_mb": self.memory_mb}
