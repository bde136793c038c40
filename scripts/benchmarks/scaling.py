"""Cost against what grows: python scripts/benchmarks/scaling.py [--quick] [--to FILE]

DNG in 5 steps of the network of ``mnist``: seconds an image against the number of forbidden classes and against the
resolution, also over its bare forward passes. Whole commands against the number of images, with their greatest memory
(the network of ``digits``, 8x8, in 2 steps, so that what grows with N shows), and on one process and on two, in
seconds of the clock.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
from measuring import DEVICE, Measurement, run, seconds

from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.modules import DiffusionModule
from dng_lightning.sampling import ClassConditionalPredictor, ImageNoise, Sampler, sample

SAMPLING, STEPS = DynamicNegativeGuidance(), 5
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
DIGITS = ["--model.checkpoint=digits", "--model.steps=2", "--data.batch_size=500", *QUIET]


def chain(model: DiffusionModule, forbidden: int, side: int, batch: int) -> tuple[float, float]:
    """Seconds an image of a chain, and of its forward passes alone."""
    noise = ImageNoise(range(batch), (model.image_shape[0], side, side), DEVICE)
    predictor = ClassConditionalPredictor(model, model.null_class, list(range(forbidden)))
    began = seconds()
    x = sample(predictor, SAMPLING, model.schedule, noise, Sampler(STEPS))
    sampled = seconds()
    with torch.no_grad():
        labels = torch.zeros(batch * (1 + forbidden), dtype=torch.long, device=DEVICE)
        for _ in range(STEPS):
            model(x.repeat(1 + forbidden, 1, 1, 1), model.schedule.level(500), labels)
    return (sampled - began) / batch, (seconds() - sampled) / batch


def command(*words: str) -> tuple[float, float, float]:
    """Seconds of a command by the clock and of its CPUs, and its greatest memory in MiB."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        line = [sys.executable, "-m", "dng_lightning", *words]
        process = subprocess.Popen(line, cwd=folder, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        if status:
            output.seek(0)
            sys.exit(f"{' '.join(words)}: {output.read().decode()[-500:]}")
    return took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def chains(quick: bool) -> Iterator[Measurement]:
    """The number of forbidden classes, and the resolution."""
    model, batch = DiffusionModule.load("mnist").to(DEVICE), 1 if quick else 8
    cases = [(1, 28), (2, 56)] if quick else [(1, 28), (2, 28), (4, 28), (9, 28), (1, 56), (1, 112)]
    for forbidden, side in cases:
        name = f"{forbidden} forbidden, {side}x{side}, batch {batch}"
        times = [chain(model, forbidden, side, batch) for _ in range(2 if quick else 4)][1:]  # the first one allocates
        yield Measurement(name, "s / image", [whole for whole, _ in times])
        yield Measurement(f"{name}, over bare forwards", "ratio", [whole / bare for whole, bare in times])


def commands(quick: bool) -> Iterator[Measurement]:
    """The number of images, and of processes."""
    numbers = {"predict": [8, 16], "test": [8]} if quick else {"predict": [500, 5_000, 20_000], "test": [500, 2_000]}
    for name, counts in numbers.items():
        for count in counts:
            features = ["--trainer.callbacks.features=null"] if name == "test" else []
            _, used, memory = command(name, *DIGITS, *features, f"--data.num_samples={count}")
            yield Measurement(f"dng {name}, {count:,} images", "s of CPU", [used])
            yield Measurement(f"dng {name}, {count:,} images", "MiB at most", [memory])
    of_mnist = DIGITS if quick else ["--model.steps=10", *QUIET]
    for devices in ("1", "2"):
        count = ["--data.num_samples=4" if quick else "--data.num_samples=128", "--data.batch_size=16"]
        took, *_ = command("predict", *of_mnist, *count, "--trainer.accelerator=cpu", f"--trainer.devices={devices}")
        yield Measurement(f"dng predict, {devices} processes", "s of the clock", [took])


def measure(quick: bool) -> Iterator[Measurement]:
    """All of it."""
    yield from chains(quick)
    yield from commands(quick)


if __name__ == "__main__":
    run(__doc__, measure)
