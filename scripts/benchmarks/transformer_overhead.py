"""A guided step over a transformer's bare forward: python scripts/benchmarks/transformer_overhead.py [BATCH ...]

As sampling_overhead.py, on DiT-S/2 (Peebles & Xie, 2023): 12 layers of width 384, latents of 4x32x32, ten classes,
random weights. Both are timed in turn within one run, on a batch of the same size; on a CPU in its own seconds, so that
other work on the machine does not count.
"""

import sys
import time
from pathlib import Path

import diffusers
import torch
from sampling_overhead import overhead

from dng_lightning.guidance import (
    ConceptRemovalGuidance,
    DynamicNegativeGuidance,
    Guidance,
    NegativePrompting,
    SafeLatentDiffusion,
    Unguided,
)
from dng_lightning.modules import DiffusionModule
from dng_lightning.networks import DiffusersNetwork
from dng_lightning.pretrained.base import ModelParts
from dng_lightning.schedule import LinearSchedule

STEPS = 12
METHODS: dict[str, Guidance] = {
    "Unguided": Unguided(),
    "NegativePrompting": NegativePrompting(),
    "SafeLatentDiffusion": SafeLatentDiffusion(),
    "ConceptRemovalGuidance": ConceptRemovalGuidance(),
    "DynamicNegativeGuidance, tracked": DynamicNegativeGuidance(),
}


def dit_s_2() -> DiffusionModule:
    """The transformer."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=12, sample_size=32,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    net = DiffusersNetwork(network.eval(), 10, learned_variance=True)
    return DiffusionModule.of(ModelParts(net, LinearSchedule(), "eps", (4, 32, 32), Path()))


def main() -> None:
    """Print a line a method."""
    batches = [int(argument) for argument in sys.argv[1:]] or [4]
    model = dit_s_2()
    print(f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters", flush=True)
    print(
        f"| step / bare forward | {' | '.join(f'batch {batch}' for batch in batches)} |\n|{'---|' * (1 + len(batches))}"
    )
    for name, guidance in METHODS.items():
        cells = (f"{overhead(model, guidance, batch, STEPS, time.process_time):.3f}" for batch in batches)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
