"""What a guided step costs beyond its network: python tests/benchmarks/sampling_overhead.py

Times whole steps of the sampler (predictions, guidance, evidence, noise) against the bare batched forward pass of the
same network on the same input, in turn, and prints the median of the ratios step by step.
"""

import statistics
import time

import torch

from dng_lightning.guidance import DynamicNegativeGuidance, NegativePrompting, SafeLatentDiffusion
from dng_lightning.modules import DiffusionModule
from dng_lightning.predictors import ClassConditionalPredictor, levels
from dng_lightning.sampling import ImageNoise, Sampler, sample

BATCH, STEPS = 128, 30


def main() -> None:
    """Print a line a method."""
    model = DiffusionModule.load("mnist")
    for guidance in (NegativePrompting(), SafeLatentDiffusion(), DynamicNegativeGuidance()):
        bare, marks = [], []

        def forward() -> None:
            x = torch.randn(2 * BATCH, *model.image_shape)
            labels = torch.arange(2).repeat_interleave(BATCH)
            began = time.perf_counter()
            with torch.no_grad():
                model(x, levels(x, 500), labels)
            bare.append(time.perf_counter() - began)  # noqa: B023  # called within this round
            marks.append(time.perf_counter())  # noqa: B023

        steps = []

        def on_step(*_: object) -> None:
            steps.append(time.perf_counter() - marks[-1])  # noqa: B023
            forward()  # noqa: B023

        predictor = ClassConditionalPredictor(model, model.null_class, [0])
        noise = ImageNoise(range(BATCH), model.image_shape)
        forward()
        sample(predictor, guidance, model.schedule, noise, Sampler(STEPS), on_step=on_step)
        ratios = [step / alone for step, alone in zip(steps[2:], bare[2:], strict=False)]
        print(f"{type(guidance).__name__:<26}{statistics.median(ratios):.3f} x the bare forward of batch {BATCH}")


if __name__ == "__main__":
    main()
