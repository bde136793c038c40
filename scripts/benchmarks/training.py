"""Training and forward speed beside networks of other libraries: python scripts/benchmarks/training.py [--quick]

The network of ``mnist`` beside diffusers' ``UNet2DModel`` and denoising-diffusion-pytorch's ``Unet`` (where installed)
of about as many parameters, on batches of 128 images of 28x28, in single precision and under bfloat16 autocast: a whole
step with AdamW, and a forward alone. Nothing is compiled.
"""

from collections.abc import Callable, Iterator

import torch
from diffusers import UNet2DModel
from measuring import DEVICE, Measurement, run, seconds
from torch import Tensor, nn

from dng_lightning.modules import DiffusionModule

Call = Callable[[Tensor, Tensor], Tensor]


def networks() -> Iterator[tuple[str, nn.Module, Call]]:
    """Names, networks, and how each is called with images and times."""
    ours = DiffusionModule.load("mnist").net.requires_grad_(True)
    labels = torch.arange(4096, device=DEVICE) % 10
    yield "dng_lightning", ours, lambda x, t: ours(x, t, labels[: len(x)])
    theirs = UNet2DModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    yield "diffusers", theirs, lambda x, t: theirs(x, t).sample
    try:
        from denoising_diffusion_pytorch import Unet
    except ImportError:
        return
    unet = Unet(dim=32, dim_mults=(1, 2, 4), channels=1)
    yield "denoising-diffusion-pytorch", unet, unet


def measure(quick: bool) -> Iterator[Measurement]:
    """Images a second of each network in each precision."""
    batch, repeats = (4, 1) if quick else (128, 3)
    for name, net, call in networks():
        net.to(DEVICE).train()
        optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
        x, t = torch.randn(batch, 1, 28, 28, device=DEVICE), torch.arange(batch, device=DEVICE)
        millions = sum(weight.numel() for weight in net.parameters()) / 1e6

        def forward(call: Call = call, x: Tensor = x, t: Tensor = t) -> None:
            with torch.no_grad():
                call(x, t)

        def step(call: Call = call, x: Tensor = x, t: Tensor = t, by: torch.optim.Optimizer = optimizer) -> None:
            by.zero_grad()
            (call(x, t).float() - x).square().mean().backward()
            by.step()

        for precision in ("fp32", "bf16"):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
                for work in (step, forward):
                    work()  # the first one allocates
                    speeds = list[float]()
                    for _ in range(repeats):
                        began = seconds()
                        work()
                        speeds.append(batch / max(seconds() - began, 1e-9))
                    yield Measurement(f"{name} {millions:.2f} M, {precision}, {work.__name__}", "images / s", speeds)


if __name__ == "__main__":
    run(__doc__, measure)
