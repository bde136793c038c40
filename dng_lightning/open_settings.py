"""Settings that a configuration leaves open with null, chosen by the images' size and number: the one place for it.

They make a first training that works, on a laptop for small images; the values are printed, and stand in the saved
``config.yaml``, from where they can be changed one by one.
"""

import math
from typing import Any

from jsonargparse import Namespace

from dng_lightning.data.base import ImageDataModule
from dng_lightning.errors import SettingError

FEW_IMAGES = 5000  # fewer are soon known by heart
COARSEST = 8  # pixels that the last level of a network has about, on each side


def is_open(settings: Namespace) -> bool:
    """Whether the network of a configuration is left open."""
    net = settings.get("model.init_args.net.init_args")
    return net is not None and any(net.get(name, 0) is None for name in ("image_channels", "num_classes", "channels"))


def close(settings: Namespace, data: ImageDataModule) -> str:
    """Fill in what is open.

    Args:
        settings: of a command, changed in place.
        data: its data.

    Returns:
        what was chosen, in a line.

    Raises:
        SettingError: the images' sides cannot be halved as often as a network needs.
    """
    net, trainer = settings.model.init_args.net, settings.trainer
    is_classifier = net.class_path.endswith("Classifier")
    count = data.training_images
    channels, *sides = data.image_shape
    if is_classifier and len(data.class_names) < 2:
        raise SettingError(f"{data.title} has {len(data.class_names) or 'no'} classes: a classifier needs two")
    chosen: dict[str, Any] = {"image_channels": channels, "num_classes": len(data.class_names)}
    chosen = {name: value for name, value in chosen.items() if net.init_args[name] is None}
    if net.init_args.channels is None:
        chosen |= classifier_of(channels, sides) if is_classifier else unet_of(sides, count)
    for name, value in chosen.items():
        net.init_args[name] = value
    steps: dict[str, Any] = {}
    if trainer.max_steps == -1 and trainer.max_epochs is None:
        steps["max_steps"] = trainer.max_steps = steps_of(sides, count, is_classifier)
        epochs = trainer.max_steps * data.batch_size / max(count, 1)
        if trainer.check_val_every_n_epoch == 1 and not is_classifier:  # about ten validations, each with pictures
            steps["check_val_every_n_epoch"] = trainer.check_val_every_n_epoch = max(1, round(epochs / 10))
    named = {f"model.net.{name}": value for name, value in chosen.items()}
    named |= {f"trainer.{name}": value for name, value in steps.items()}
    size = "x".join(map(str, data.image_shape))
    listed = ", ".join(f"{name} {value}" for name, value in named.items())
    return f"For {count:,} images of {size} in {len(data.class_names)} classes: {listed}"


def unet_of(sides: list[int], count: int) -> dict[str, Any]:
    """A ``UNet``: most work at half or a quarter of the resolution, and halved until some 8 pixels are left."""
    side = max(sides)
    patch = 1 if side < 16 else 2 if side <= 64 else 4 if side <= 128 else 8
    levels = max(2, min(4, 1 + round(math.log2(max(side / patch / COARSEST, 1)))))
    multiple = patch * 2 ** (levels - 1)
    if any(side % multiple for side in sides):
        fitting = [-(-side // multiple) * multiple for side in sides]
        raise SettingError(
            f"the network halves images of {'x'.join(map(str, sides))} until their sides are no multiples of "
            f"{multiple} any more: set data.image_size to {fitting}, and data.fit to pad for a black margin"
        )
    return {
        "channels": [48, 64] if side < 16 else [64, 128, 256, 256][:levels],
        "blocks": 1 if side < 32 else 2,
        "attention": [levels - 1],
        "patch": patch,
        "dropout": 0.1 if count < FEW_IMAGES else 0.0,
    }


def classifier_of(channels: int, sides: list[int]) -> dict[str, Any]:
    """An ``ImageClassifier``: colour needs a wider one, and large images more blocks."""
    blocks = max(1, min(6, math.floor(math.log2(min(sides) / 2))))
    widths = [64, 128, 256, 256, 256, 256] if channels == 3 else [32, 64, 128, 128, 128, 128]
    return {"channels": widths[: max(blocks, 3) if min(sides) >= 8 else blocks], "residual": channels == 3}


def steps_of(sides: list[int], count: int, is_classifier: bool) -> int:
    """Steps of a training, with the root of the number of images; more for images of more pixels."""
    few = 1000 * math.sqrt(count / 1000) * max(1, max(sides) / 32)
    return max(500, round(few / 500) * 500) if not is_classifier else max(300, round(few / 400) * 100)
