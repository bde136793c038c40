"""Reference images: samples of the forbidden class, where there is no model of it."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dng_lightning.errors import SettingError


class References:
    """Reference images and their distances.

    Args:
        images: (N, ...), in about [-1, 1].
        source: file or folder of the images, for tables and messages.
    """

    def __init__(self, images: Tensor, source: str | Path = "") -> None:
        self.images, self.source = images, source
        self._reached: dict[float, float] = {}
        self._copies: dict[tuple[torch.device, torch.dtype], References] = {}

    def like(self, x: Tensor) -> "References":
        """The references on the device, in the precision and with the channels of ``x`` (B, ...).

        Raises:
            SettingError: the references have another shape than ``x``.
        """
        images = self.images
        if images.shape[1:] == (1, *x.shape[2:]):  # a grey image has equal channels
            images = images.expand(-1, *x.shape[1:])
        if images.shape[1:] != x.shape[1:]:
            raise SettingError(
                f"references {self.source} must be images of {tuple(x.shape[1:])}; they are {tuple(self.images.shape)}"
            )
        if images is self.images and (images.device, images.dtype) == (x.device, x.dtype):
            return self
        key = x.device, x.dtype
        if key not in self._copies:  # one copy for all batches, with its cached distances
            self._copies[key] = References(images.to(*key), self.source)
        return self._copies[key]

    @cached_property
    def neighbours(self) -> Tensor:
        """Distances of each image to the others, ascending, (N, N - 1); 0 between equal images.

        Raises:
            SettingError: there is only one image.
        """
        if len(self.images) < 2:
            raise SettingError(
                "one reference image has no neighbours: set the radius, bandwidth or gamma, or add images"
            )
        distance = self.distances(self.images)
        others = ~torch.eye(len(distance), dtype=torch.bool, device=distance.device)
        return distance[others].view(len(distance), -1).sort(1).values

    @cached_property
    def gamma(self) -> float:
        """The gamma at which exp(-gamma d^2) is 0.05 at the mean square distance of the 4th to 6th neighbours.

        Raises:
            SettingError: there are fewer than 5 images, or all are equal.
        """
        square = float(self.neighbours[:, 3:6].square().mean())
        if not square > 0:
            raise SettingError("there are fewer than 5 different reference images: set the gamma or bandwidth")
        return -torch.tensor(0.05).log().item() / square

    @cached_property
    def radius(self) -> float:
        """The 95 % quantile of the distance from an image to its nearest neighbour."""
        return float(torch.quantile(self.neighbours[:, 0], 0.95))

    def reached(self, gamma: float) -> float:
        """The 5 % quantile of sum_j exp(-gamma d_ij^2) over the images i, j running over the others; computed once."""
        if gamma not in self._reached:
            own = (-gamma * self.neighbours.square()).exp().sum(1)
            self._reached[gamma] = float(torch.quantile(own, 0.05))
        return self._reached[gamma]

    def distances(self, x: Tensor) -> Tensor:
        """Distances of images ``x`` (B, ...) to each reference, (B, N)."""
        # a matrix product is inaccurate for short distances
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(x.flatten(1), self.images.flatten(1), compute_mode=exact)
