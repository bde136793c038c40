"""Time of a guided step over its bare network: python scripts/benchmarks/sampling_overhead.py [--quick] [--to FILE]

Times whole steps of the sampler (predictions, guidance, posterior, noise) against the bare forward pass of the same
network on a batch of the same size, in turn within one run: the ratios step by step. Every method at batch 1 and 128,
and DNG at batches from 1 to 512, also under bfloat16 autocast.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from measuring import DEVICE, Measurement, run, seconds

from dng_lightning.guidance import (
    AdaptiveProjectedGuidance,
    CFGNegativePrompt,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ComposableNot,
    ConceptRemovalGuidance,
    ContrastiveCFG,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    FeedbackGuidance,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    PerpNeg,
    PositiveAndNegative,
    SafeLatentDiffusion,
    SignedNegative,
    Unguided,
)
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.modules import DiffusionModule
from dng_lightning.networks.precision import BF16, set_memory_format
from dng_lightning.posterior import CalibratedPosterior, ReleasedPosterior
from dng_lightning.sampling import ClassConditionalPredictor, ImageNoise, Recorder, Sampler, sample

STEPS = 6
BATCHES = [1, 8, 32, 128, 512]
Clock = Callable[[], float]
METHODS: dict[str, Guidance] = {
    "Unguided": Unguided(),
    "NegativePrompting": NegativePrompting(),
    "CFGNegativePrompt": CFGNegativePrompt(),
    "ComposableNot": ComposableNot(),
    "SignedNegative": SignedNegative(),
    "PerpNeg": PerpNeg(),
    "ContrastiveCFG": ContrastiveCFG(),
    "ConceptRemovalGuidance": ConceptRemovalGuidance(),
    "SafeLatentDiffusion": SafeLatentDiffusion(),
    "DynamicNegativeGuidance, tracked": DynamicNegativeGuidance(),
    "DynamicNegativeGuidance, calibrated": DynamicNegativeGuidance(posterior=CalibratedPosterior([[0.0, 1.0, 0.0]])),
    "DynamicNegativeGuidance, released": DynamicNegativeGuidance(posterior=ReleasedPosterior()),
    "DynamicGeoGuide": DynamicGeoGuide(),
    "PositiveAndNegative(DNG)": PositiveAndNegative(DynamicNegativeGuidance(), 2.0),
    "LimitedInterval(DNG)": LimitedInterval(DynamicNegativeGuidance()),
    "ClassifierFreeGuidance": ClassifierFreeGuidance(2.0),
    "CFGPlusPlus": CFGPlusPlus(),
    "AdaptiveProjectedGuidance": AdaptiveProjectedGuidance(),
    "FeedbackGuidance": FeedbackGuidance(),
}


class Stopwatch(Recorder):
    """Notes when a step ends, and times the bare forward pass before the next one starts.

    Args:
        model: the network.
        batch: of its forward pass.
        clock: gives the seconds.
    """

    def __init__(self, model: DiffusionModule, batch: int, clock: Clock) -> None:
        self.model, self.clock, self.marks = model, clock, list[float]()
        self.is_bf16 = torch.is_autocast_enabled(DEVICE.type)  # guidance and recorders run outside of autocast
        self.x = torch.randn(batch, *model.image_shape, device=DEVICE)
        self.labels = torch.arange(batch, device=DEVICE) % 10

    def mark(self) -> None:
        """Note the time before and after a forward pass."""
        self.marks.append(self.clock())
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.is_bf16):
            self.model(self.x, self.model.schedule.level(500), self.labels)
        self.marks.append(self.clock())

    def start(self, x_T: torch.Tensor, conditions: int) -> None:
        self.mark()

    def record(
        self, step: Step, x_t: torch.Tensor, x_s: torch.Tensor, predictions: Predictions, guided: Guided
    ) -> None:
        self.mark()


def overhead(
    model: DiffusionModule, guidance: Guidance, batch: int, steps: int = STEPS, clock: Clock = seconds
) -> list[float]:
    """For each step but the first two: its time over that of the bare forward pass before it."""
    needs = guidance.needs()
    is_toward_class = (
        needs.class_labels or (needs.null and not needs.negatives) or "Positive" in type(guidance).__name__
    )
    labels = torch.ones(batch, dtype=torch.int64, device=DEVICE) if is_toward_class else None
    branches = 1 + bool(needs.negatives) + bool(needs.null and labels is not None)
    stopwatch = Stopwatch(model, branches * batch, clock)
    predictor = ClassConditionalPredictor(model, model.null_class, [0], labels)
    noise = ImageNoise(range(batch), model.image_shape, DEVICE)
    sample(predictor, guidance, model.schedule, noise, Sampler(steps), [stopwatch])
    assert predictor.nfe == branches * batch * steps, "the bare forward is of another batch"
    times = [later - earlier for earlier, later in pairwise(stopwatch.marks)]  # forward, step, forward, ..., forward
    return [step / forward for forward, step in zip(times[4:-1:2], times[5::2], strict=True)]


def overheads(
    model: DiffusionModule, methods: Mapping[str, Guidance], batches: Sequence[int], steps: int
) -> Iterator[Measurement]:
    """A measurement for each method and batch size."""
    model.to(DEVICE)
    for name, guidance in methods.items():
        for batch in batches:
            ratios = overhead(model, guidance, batch, steps)
            yield Measurement(f"{name}, batch {batch}", "step / bare forward", ratios)


def measure(quick: bool) -> Iterator[Measurement]:
    """The network of MNIST."""
    model, steps = DiffusionModule.load("mnist"), 5 if quick else STEPS
    dng = {name: guidance for name, guidance in METHODS.items() if name.endswith("tracked")}
    yield from overheads(model, METHODS, [1] if quick else [1, 128], steps)
    yield from overheads(model, dng, [] if quick else [8, 32, 512], steps)
    set_memory_format(model.net, DEVICE, BF16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        yield from overheads(model, {f"{name}, bf16": dng[name] for name in dng}, [1] if quick else BATCHES, steps)


if __name__ == "__main__":
    run(__doc__, measure)
