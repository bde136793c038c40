"""Small models of other libraries, saved."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dng_lightning.modules import DiffusionModule
from dng_lightning.parametrization import denoised_of

TINY = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4,
    "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
NAMES = list("0123456789")
KNOWN = {"classifier": "digits-classifier", "steps": 2}


def saved(diffusers: Any, folder: Path, variant: str | None = None, **network: Any) -> Any:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**TINY | network).eval().requires_grad_(False)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder, variant=variant)
    return net


def expected(module: DiffusionModule, net: Any, x_t: Tensor, labels: Tensor | None) -> Tensor:
    level = module.schedule.level(500)
    return denoised_of(net(x_t, 499, class_labels=labels).sample[:, :1], x_t, level.alpha, level.sigma, "eps")
