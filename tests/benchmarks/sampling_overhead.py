"""What a guided step costs beyond its network: python tests/benchmarks/sampling_overhead.py

Times whole steps of the sampler (predictions, guidance, evidence, noise) against the bare batched forward pass of the
same network on the same input, in turn, and prints the median of the ratios step by step.
"""

import statistics
import time
from itertools import pairwise

import torch

from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, NegativePrompting, SafeLatentDiffusion
from dng_lightning.modules import DiffusionModule
from dng_lightning.predictors import ClassConditionalPredictor
from dng_lightning.sampling import ImageNoise, Sampler, sample

BATCH, STEPS = 128, 30


def overhead(model: DiffusionModule, guidance: Guidance) -> float:
    """Median over the steps of: a whole step's time over that of the bare forward pass before it."""
    x, t = torch.randn(2 * BATCH, *model.image_shape), torch.full((2 * BATCH,), 500)
    labels = torch.arange(2).repeat_interleave(BATCH)
    marks = []

    def mark_and_forward(*_: object) -> None:
        marks.append(time.perf_counter())  # the step before ends here
        with torch.no_grad():
            model(x, t, labels)
        marks.append(time.perf_counter())  # the next step starts here

    predictor = ClassConditionalPredictor(model, model.null_class, [0])
    mark_and_forward()
    noise = ImageNoise(range(BATCH), model.image_shape)
    sample(predictor, guidance, model.schedule, noise, Sampler(STEPS), on_step=mark_and_forward)
    times = [later - earlier for earlier, later in pairwise(marks)]  # forward, step, forward, step, ..., forward
    return statistics.median(step / forward for forward, step in zip(times[4:-1:2], times[5::2], strict=True))


def main() -> None:
    """Print a line a method."""
    model = DiffusionModule.load("mnist")
    for guidance in (NegativePrompting(), SafeLatentDiffusion(), DynamicNegativeGuidance()):
        print(f"{type(guidance).__name__:<26}{overhead(model, guidance):.3f} x the bare forward of batch {BATCH}")


if __name__ == "__main__":
    main()
