"""Reference images: a sample of what is forbidden, where there is no model of it."""

from functools import cached_property, lru_cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from dng_lightning.errors import SettingError

OVERVIEWS = ("grid.png", "trajectories.png")  # what `dng predict` writes beside the images


class References:
    """Reference images and how they lie.

    Args:
        images: (N, ...), about [-1, 1].
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self._reached: dict[float, float] = {}

    @cached_property
    def neighbours(self) -> Tensor:
        """Distances of each image to the others, in rising order, (N, N - 1); those between alike images are 0.

        Raises:
            SettingError: there is only one image.
        """
        if len(self.images) < 2:
            raise SettingError("one reference image tells no distances: name the radius, bandwidth or gamma and more")
        distance = self.distances(self.images)
        others = ~torch.eye(len(distance), dtype=torch.bool, device=distance.device)
        return distance[others].view(len(distance), -1).sort(1).values

    @cached_property
    def gamma(self) -> float:
        """The gamma at which exp(-gamma d^2) is 0.05 at the mean square distance of the 4th to 6th neighbours.

        Raises:
            SettingError: there are too few images, or these are all alike.
        """
        square = float(self.neighbours[:, 3:6].square().mean())
        if not square > 0:
            raise SettingError("the reference images are fewer than 5, or all alike: name the gamma or bandwidth")
        return -torch.tensor(0.05).log().item() / square

    @cached_property
    def radius(self) -> float:
        """The distance within which 95 % of the images have another one."""
        return float(torch.quantile(self.neighbours[:, 0], 0.95))

    def reached(self, gamma: float) -> float:
        """The sum of kernels exp(-gamma d^2) that 95 % of the images reach by the others alone; found once a gamma."""
        if gamma not in self._reached:
            own = (-gamma * self.neighbours.square()).exp().sum(1)
            self._reached[gamma] = float(torch.quantile(own, 0.05))
        return self._reached[gamma]

    def distances(self, x: Tensor) -> Tensor:
        """Of images ``x`` (B, ...) to each reference, (B, N)."""
        # by differences: a product of matrices loses the short distances
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(x.flatten(1), self.images.flatten(1), compute_mode=exact)


@lru_cache(maxsize=8)
def read(path: Path, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> References:
    """The references at ``path``.

    Args:
        path: a ``.pt`` file or a folder of PNG files, such as ``dng predict`` writes.
        shape: of one image.
        dtype: that the distances are taken in.
        device: where they are wanted.

    Raises:
        SettingError: it holds no images, or others than of this shape.
    """
    from dng_lightning.data.pixels import from_png, to_float  # here: `data` brings Lightning, which takes seconds

    if path.is_dir():
        pictures = [from_png(file) for file in sorted(path.glob("*.png")) if file.name not in OVERVIEWS]
        if len({picture.shape for picture in pictures}) != 1:
            raise SettingError(f"references {path}: a folder must hold PNG files, all of one shape")
        images = torch.stack(pictures)
    else:
        try:
            images = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise SettingError(f"references {path} is no .pt file of one tensor") from error
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise SettingError(f"references {path} must hold one tensor of uint8 pixels, or of floats in [-1, 1]")
    if not images.ndim or not len(images) or tuple(images.shape[1:]) != shape:
        raise SettingError(f"references {path} must be images of {shape}; the tensor is {tuple(images.shape)}")
    floats = to_float(images) if images.dtype == torch.uint8 else images
    return References(floats.to(device, dtype))
