"""Chooses the settings that a configuration leaves open with null.

Network, batch size, precision and number of steps depend on the size and number of the images, the device, and
``trainer.max_time``. They are a start for a first training. The values are printed and saved in ``config.yaml``.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Timer
from torch import nn

from dng_lightning.data.base import ImageDataModule
from dng_lightning.errors import SettingError
from dng_lightning.networks.precision import FP32, fastest_precision

FEW_IMAGES = 5000  # fewer images need dropout against overfitting
COARSEST = 8  # approximate side of the lowest resolution of a network, in pixels
TRAINING = 0.7  # share of training steps in the time of a run; the rest is validation
LONGEST = 4  # bound on the number of steps, relative to the usual number
TIMED = 3  # number of timed steps, after a first one

Make = Callable[[Namespace], nn.Module]


def is_open(settings: Namespace) -> bool:
    """Whether the network or the batch size of a configuration is left open."""
    net = settings.get("model.init_args.net.init_args")
    names = ("image_channels", "num_classes", "channels")
    has_open_net = net is not None and any(net.get(name, 0) is None for name in names)
    return has_open_net or settings.get("data.init_args.batch_size", 0) is None


def close(settings: Namespace, data: ImageDataModule, make: Make) -> str:
    """Choose the open settings.

    Args:
        settings: settings of a command, changed in place.
        data: the datamodule, which gets the batch size.
        make: makes a network from its class path and settings, to time its steps.

    Returns:
        One line with the chosen settings.

    Raises:
        SettingError: the sides of the images cannot be halved as often as needed, or a classifier has one class.
    """
    net, trainer = settings.model.init_args.net, settings.trainer
    is_classifier = net.class_path.endswith("Classifier")
    count = data.training_images
    channels, *sides = data.image_shape
    if is_classifier and len(data.class_names) < 2:
        raise SettingError(f"{data.title} has {len(data.class_names) or 'no'} classes: a classifier needs two")
    device = device_of(trainer.accelerator)
    chosen: dict[str, Any] = {"image_channels": channels, "num_classes": len(data.class_names)}
    chosen = {name: value for name, value in chosen.items() if net.init_args[name] is None}
    is_free = net.init_args.channels is None
    if is_free:
        chosen |= classifier_of(channels, sides) if is_classifier else unet_of(sides, count)
    for name, value in chosen.items():
        net.init_args[name] = value
    named = {f"model.net.{name}": value for name, value in chosen.items()}

    # Batch size and precision
    if settings.data.init_args.get("batch_size", 0) is None:
        batch_size = batch_of(sides, count, device)
        named["data.batch_size"] = data.batch_size = settings.data.init_args.batch_size = batch_size
    if trainer.precision is None:
        named["trainer.precision"] = trainer.precision = fastest_precision(device)

    # Length: the usual number of steps, or as many as the time allows, with a narrower network if they are few
    if trainer.max_steps == -1 and trainer.max_epochs is None:
        steps = steps_of(sides, count, is_classifier)
        if seconds := seconds_of(trainer.max_time):
            batch = data.batch, channels, *sides

            def fitting() -> int:
                with torch.random.fork_rng():  # the saved settings must give the same run
                    return int(TRAINING * seconds / seconds_a_step(make(net), batch, is_classifier, device))

            fit = fitting()
            if is_free and fit < steps / 2:
                net.init_args.channels = [width // 2 for width in net.init_args.channels]
                named["model.net.channels"], fit = net.init_args.channels, fitting()
            steps = max(1, min(fit, LONGEST * steps))
        named["trainer.max_steps"] = trainer.max_steps = steps
        epochs = steps * data.batch / max(count, 1)
        if trainer.check_val_every_n_epoch == 1 and not is_classifier:  # about ten validations, each with images
            trainer.check_val_every_n_epoch = max(1, round(epochs / 10))
            named["trainer.check_val_every_n_epoch"] = trainer.check_val_every_n_epoch
    size = "x".join(map(str, data.image_shape))
    listed = ", ".join(f"{name} {value}" for name, value in named.items())
    return f"For {count:,} images of {size} in {len(data.class_names)} classes on {device.type}: {listed}"


def device_of(accelerator: Any) -> torch.device:
    """The device that a trainer with such an ``accelerator`` setting will use."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    is_mps = accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available()
    return torch.device("mps" if is_mps else "cpu")


def batch_of(sides: list[int], count: int, device: torch.device) -> int:
    """Images a batch: fewer where they are large, twice as many on CUDA; a quarter of a small set at most."""
    side = max(sides)
    most = (128 if side < 32 else 64 if side <= 64 else 32 if side <= 128 else 16) * (2 if device.type == "cuda" else 1)
    return max(1, min(most, 1 << math.floor(math.log2(max(count / 4, 1)))))


def seconds_of(max_time: Any) -> float:
    """The seconds of a trainer's ``max_time``, 0 for None.

    Raises:
        SettingError: the time is malformed.
    """
    if max_time is None:
        return 0.0
    try:
        return Timer(max_time).time_remaining() or 0.0
    except Exception as error:  # Lightning refuses it in several ways
        raise SettingError(
            f"trainer.max_time is {max_time}: give days:hours:minutes:seconds, such as 00:02:00:00"
        ) from error


def seconds_a_step(net: nn.Module, batch: tuple[int, ...], is_classifier: bool, device: torch.device) -> float:
    """The mean time of some forward and backward passes on black images (B, C, H, W), in the precision chosen here."""
    net, images = net.to(device).train(), torch.zeros(batch, device=device)
    t = torch.zeros(batch[0], dtype=torch.long, device=device)
    began = 0.0
    for step in range(1 + TIMED):
        began = time.perf_counter() if step == 1 else began
        with torch.autocast(device.type, torch.bfloat16, enabled=fastest_precision(device) != FP32):
            output = net(images) if is_classifier else net(images, t)
        output.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED


def unet_of(sides: list[int], count: int) -> dict[str, Any]:
    """Settings of a ``UNet``: most work at half or a quarter of the resolution, lowest resolution about 8 pixels."""
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
    """Settings of an ``ImageClassifier``: wider for colour, more blocks for large images."""
    blocks = max(1, min(6, math.floor(math.log2(min(sides) / 2))))
    widths = [64, 128, 256, 256, 256, 256] if channels == 3 else [32, 64, 128, 128, 128, 128]
    return {"channels": widths[: max(blocks, 3) if min(sides) >= 8 else blocks], "residual": channels == 3}


def steps_of(sides: list[int], count: int, is_classifier: bool) -> int:
    """Steps of a training: proportional to the root of the number of images, more for large images."""
    few = 1000 * math.sqrt(count / 1000) * max(1, max(sides) / 32)
    return max(500, round(few / 500) * 500) if not is_classifier else max(300, round(few / 400) * 100)
