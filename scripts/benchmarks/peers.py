"""Sampling beside the loops of others: python scripts/benchmarks/peers.py [--quick] [--to FILE]

The network of ``mnist``, the same noise, 10 steps of 64 images. Each other loop and ours run in turn: the authors'
kind of DNG (two forwards a step, the posterior as a probability) against the released posterior, a loop over diffusers'
``DDPMScheduler`` against negative prompting, and the sampler of denoising-diffusion-pytorch (where installed) against
ours without guidance. Images a second, the ratio of each pair, and the difference of the images in grey levels.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr

import torch
from diffusers import DDPMScheduler
from measuring import DEVICE, Measurement, run, seconds
from torch import Tensor, nn

from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, NegativePrompting, Unguided
from dng_lightning.modules import DiffusionModule
from dng_lightning.networks.precision import BF16, set_memory_format
from dng_lightning.posterior import ReleasedPosterior
from dng_lightning.sampling import ClassConditionalPredictor, Sampler, sample

Loop = Callable[[], Tensor]
FORBIDDEN, PRIOR, SCALE = 0, 0.1, 1.0
RELEASED = ReleasedPosterior(PRIOR, temperature=1.0, offset=0.0)


class Noise:
    """Standard normal noise of a batch from one generator, (B, C, H, W) at each call."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.generator = shape, torch.Generator(DEVICE).manual_seed(0)

    def __call__(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator, device=DEVICE)


def ours(model: DiffusionModule, shape: tuple[int, ...], guidance: Guidance, sampler: Sampler) -> Tensor:
    """The package's loop."""
    predictor = ClassConditionalPredictor(model, model.null_class, [FORBIDDEN])
    return sample(predictor, guidance, model.schedule, Noise(shape), sampler)


def eps(model: DiffusionModule, x: Tensor, t: int, label: int) -> Tensor:
    """The network's output, without the package around it."""
    labels, times = (torch.full((len(x),), number, device=x.device) for number in (label, t))
    return model.net(x, times, labels)


@torch.no_grad()
def authors_kind(model: DiffusionModule, shape: tuple[int, ...], sampler: Sampler) -> Tensor:
    """DNG as the authors' release computes it: probabilities, and a forward for each of the two predictions."""
    noise = Noise(shape)
    x, p = noise(), torch.full((shape[0], 1, 1, 1), PRIOR, device=DEVICE)
    for step in sampler.chain(model.schedule):
        t, s, kernel = step.level, step.next_level, step.kernel
        e, e_c = eps(model, x, t.timestep, model.null_class), eps(model, x, t.timestep, FORBIDDEN)
        guided = e - SCALE * p / (1 - p) * (e_c - e)
        ratio = t.alpha / s.alpha
        a, b = 1 / ratio, kernel.forward_variance / (ratio * t.sigma)
        mean, mean_c, mean_g = a * x - b * e, a * x - b * e_c, a * x - b * guided
        x = mean_g + kernel.std * noise() if s.sigma else mean_g
        if s.sigma:
            distance = (x - mean).square().sum((1, 2, 3), keepdim=True)
            distance_c = (x - mean_c).square().sum((1, 2, 3), keepdim=True)
            p = p * torch.exp((distance - distance_c) / (2 * kernel.beta_tilde))
            p = p.clamp(RELEASED.p_min, RELEASED.p_max)
    return x


@torch.no_grad()
def diffusers_loop(model: DiffusionModule, shape: tuple[int, ...], steps: int) -> Tensor:
    """Negative prompting in a loop over diffusers' scheduler, with one forward a step as in its pipelines."""
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    noise = Noise(shape)
    x = noise()
    labels = torch.tensor([model.null_class, FORBIDDEN], device=DEVICE).repeat_interleave(len(x))
    for t in scheduler.timesteps:
        e, e_c = model.net(torch.cat([x, x]), t.expand(len(labels)).to(DEVICE), labels).chunk(2)
        x = scheduler.step(e - SCALE * (e_c - e), t, x, generator=noise.generator).prev_sample
    return x


class Adapter(nn.Module):
    """The network as denoising-diffusion-pytorch's ``GaussianDiffusion`` calls it, always with the null class."""

    channels = out_dim = 1
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, model: DiffusionModule) -> None:
        super().__init__()
        self.net, self.null_class = model.net, model.null_class

    def forward(self, x: Tensor, t: Tensor, *_: object) -> Tensor:
        return self.net(x, t, torch.full_like(t, self.null_class))


def pairs(model: DiffusionModule, batch: int, steps: int) -> Iterator[tuple[str, Loop, Loop]]:
    """The name of each other loop, the loop, and ours."""
    shape = (batch, *model.image_shape)
    beta, ancestral, clipped = Sampler(steps, variance="beta"), Sampler(steps), Sampler(steps, clip=1.0)
    released = DynamicNegativeGuidance(SCALE, RELEASED)
    yield "authors' kind of DNG", lambda: authors_kind(model, shape, beta), lambda: ours(model, shape, released, beta)
    negative = NegativePrompting(SCALE)
    yield "diffusers", lambda: diffusers_loop(model, shape, steps), lambda: ours(model, shape, negative, ancestral)
    try:
        from denoising_diffusion_pytorch import GaussianDiffusion
    except ImportError:
        return
    theirs = GaussianDiffusion(
        Adapter(model), image_size=shape[2:], objective="pred_noise", beta_schedule="linear", sampling_timesteps=steps,
        ddim_sampling_eta=1.0, auto_normalize=False,
    ).to(DEVICE)  # fmt: skip

    def seeded() -> Tensor:
        torch.manual_seed(0)  # it draws from the global generator
        with redirect_stderr(io.StringIO()):  # its progress
            return theirs.sample(batch)

    yield "denoising-diffusion-pytorch", seeded, lambda: ours(model, shape, Unguided(), clipped)


def timed(loop: Loop) -> tuple[Tensor, float]:
    """The images of a loop, and its seconds."""
    began = seconds()
    return loop(), seconds() - began


def measure(quick: bool) -> Iterator[Measurement]:
    """Every pair; ours with released DNG also under bfloat16 autocast, with contiguous weights as in `dng predict`."""
    model = DiffusionModule.load("mnist").to(DEVICE)
    batch, steps, repeats = (4, 5, 1) if quick else (64, 10, 3)
    cases = [(name, *loops, False) for name, *loops in pairs(model, batch, steps)]
    for name, theirs, mine, half in [*cases, ("authors' kind of DNG, ours in bf16", *cases[0][1:3], True)]:
        times, own_times, off = list[float](), list[float](), list[float]()
        for repeat in range(repeats + 1):  # the first is a warm-up
            images, their_time = timed(theirs)
            if half:
                set_memory_format(model.net, DEVICE, BF16)
            with torch.autocast(DEVICE.type, torch.bfloat16) if half else nullcontext():
                own, own_time = timed(mine)
            model.net.to(memory_format=torch.channels_last)
            off = [float(part) * 127.5 for part in (images - own).abs().flatten(1).amax(1)]
            if repeat or quick:
                times.append(their_time)
                own_times.append(own_time)
        yield Measurement(f"{name}: theirs", "images / s", [batch / time for time in times])
        yield Measurement(f"{name}: ours", "images / s", [batch / time for time in own_times])
        yield Measurement(f"{name}: ours over theirs", "speed", [a / b for a, b in zip(times, own_times, strict=True)])
        yield Measurement(f"{name}: greatest difference of an image", "grey levels", off)


if __name__ == "__main__":
    run(__doc__, measure)
