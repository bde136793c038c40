"""What a guided step costs beyond its network: python scripts/benchmarks/sampling_overhead.py

Times whole steps of the sampler (predictions, guidance, evidence, noise) against the bare batched forward pass of the
same network on the same input, in turn, and prints the median of the ratios step by step.
"""

import statistics
import time
from itertools import pairwise

import torch

from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, NegativePrompting, SafeLatentDiffusion
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.modules import DiffusionModule
from dng_lightning.sampling import ClassConditionalPredictor, ImageNoise, Recorder, Sampler, sample

BATCH, STEPS = 128, 30


class Stopwatch(Recorder):
    """Notes when a step ends, and times the bare forward pass before the next one starts.

    Args:
        model: the network.
    """

    def __init__(self, model: DiffusionModule) -> None:
        self.model, self.marks = model, list[float]()
        self.x, self.labels = torch.randn(2 * BATCH, *model.image_shape), torch.arange(2).repeat_interleave(BATCH)

    def mark(self) -> None:
        """Note the time before and after a forward pass."""
        self.marks.append(time.perf_counter())
        with torch.no_grad():
            self.model(self.x, self.model.schedule.level(500), self.labels)
        self.marks.append(time.perf_counter())

    def start(self, x_T: torch.Tensor, conditions: int) -> None:
        self.mark()

    def record(
        self, step: Step, x_t: torch.Tensor, x_s: torch.Tensor, predictions: Predictions, guided: Guided
    ) -> None:
        self.mark()


def overhead(model: DiffusionModule, guidance: Guidance) -> float:
    """Median over the steps of: a whole step's time over that of the bare forward pass before it."""
    stopwatch = Stopwatch(model)
    predictor = ClassConditionalPredictor(model, model.null_class, [0])
    noise = ImageNoise(range(BATCH), model.image_shape)
    sample(predictor, guidance, model.schedule, noise, Sampler(STEPS), [stopwatch])
    times = [later - earlier for earlier, later in pairwise(stopwatch.marks)]  # forward, step, forward, ..., forward
    return statistics.median(step / forward for forward, step in zip(times[4:-1:2], times[5::2], strict=True))


def main() -> None:
    """Print a line a method."""
    model = DiffusionModule.load("mnist")
    for guidance in (NegativePrompting(), SafeLatentDiffusion(), DynamicNegativeGuidance()):
        print(f"{type(guidance).__name__:<26}{overhead(model, guidance):.3f} x the bare forward of batch {BATCH}")


if __name__ == "__main__":
    main()
