"""What a good Fréchet distance is: python scripts/benchmarks/jpeg_reference.py [data folder] [classifier]

Prints the distance to CIFAR-10's training images of equally many held-out test images, as they are and after JPEG
compression of quality 75, in the classifier's features: what ``dng test`` reports as ``fd_all`` for generated ones. The
classifier was trained on the images that all these are compared with, which adds to every one of these distances.
"""

import io
import sys

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dng_lightning.data import CIFAR10
from dng_lightning.evaluation.distribution_metrics import Moments, frechet_distance
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.modules import ClassifierModule

N, QUALITY = 2000, 75


def jpeg(pixels: Tensor) -> Tensor:
    """Compress and decompress each image: uint8 (B, 3, H, W)."""
    images = []
    for image in pixels.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
        images.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(images).permute(0, 3, 1, 2)


def moments(extractor: ClassifierFeatures, pixels: Tensor) -> Moments:
    """Of the images' features."""
    found = Moments()
    for batch in pixels.split(500):
        found.update(extractor(batch))
    return found


def main(root: str = "data", classifier: str = "cifar10-classifier") -> None:
    """Print a line each."""
    data, extractor = CIFAR10(root), ClassifierFeatures(ClassifierModule.load(classifier), classifier)
    data.prepare_data()
    data.setup()
    real, held_out = moments(extractor, data.part("train").images), data.part("test").images[:N]
    for name, pixels in (("as they are", held_out), (f"JPEG, quality {QUALITY}", jpeg(held_out))):
        found = moments(extractor, pixels)
        distance = frechet_distance(found.mean, found.covariance, real.mean, real.covariance)
        print(f"{N:,} test images, {name:<17} Fréchet distance ({classifier} features) {distance:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
