"""A guided step over a transformer's bare forward: python scripts/benchmarks/transformer_overhead.py [--quick]

As sampling_overhead.py, on DiT-S/2 (Peebles & Xie, 2023): 12 layers of width 384, latents of 4x32x32, ten classes,
random weights (35.2 M).
"""

from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
from measuring import Measurement, run
from sampling_overhead import overheads

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

STEPS = 6
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


def measure(quick: bool) -> Iterator[Measurement]:
    """The transformer."""
    methods = dict(list(METHODS.items())[-1:]) if quick else METHODS
    return overheads(dit_s_2(), methods, [1] if quick else [4], 4 if quick else STEPS)


if __name__ == "__main__":
    run(__doc__, measure)
