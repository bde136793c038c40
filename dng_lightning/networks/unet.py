"""The denoising U-Net of Ho et al. (2020), with an optional pixel-unshuffle at its input.

At ``channels=(128, 256, 256, 256), blocks=2, attention=(1,), patch=1`` this is the 35.7 M network of "Denoising
Diffusion Probabilistic Models" (appendix B). With ``patch=2`` and two narrow levels it trains on a laptop, since most
of the work is at a half or a quarter of the resolution.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dng_lightning.errors import SettingError, check_at_least, check_in

OPEN = "null for image_channels, num_classes or channels is only for the configuration of dng fit, which fills it in"


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of the timesteps ``t`` (B,), shape (B, dim); Vaswani et al. (2017), section 3.5."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip; the embedding is added between them."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = nn.Linear(embedding, out_channels)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, in, H, W) and (B, embedding) to (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.embed(F.silu(embedding))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Single-head self-attention over the pixels, with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (B, HW, C) each
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(h.transpose(1, 2).reshape(x.shape))
        return out


class _Level(nn.Module):
    """A residual block, followed by attention where the level has it."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, embedding, dropout)
        self.attention = Attention(out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.attention(self.residual(x, embedding))
        return out


class UNet(nn.Module):
    """Predicts eps, x0, v or the flow of a noisy image; see ``parametrization``.

    Args:
        image_channels: channels of the image, 1 for MNIST.
        num_classes: number of classes; class ``num_classes`` is then the null class (no condition). 0 makes an
            unconditional network, which ignores ``class_labels``.
        channels: width of each level; the resolution halves between two levels.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention: levels (0 is the finest) that attend over their pixels; the middle always does.
        patch: side of the pixel-unshuffle at the input; 2 halves the resolution of everything.
        dropout: probability, in [0, 1).

    The image's sides must be divisible by ``patch * 2 ** (len(channels) - 1)``. In a configuration of ``dng fit`` the
    first three settings may be null, and follow from the data; the others follow along with ``channels``.

    Raises:
        SettingError: one of them is None.
    """

    def __init__(
        self,
        image_channels: int | None = 1,
        num_classes: int | None = 10,
        channels: Sequence[int] | None = (64, 128),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        patch: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if image_channels is None or num_classes is None or channels is None:
            raise SettingError(f"UNet: {OPEN}")
        check_in("[0, 1)", dropout=dropout)
        check_at_least(1, image_channels=image_channels, patch=patch, blocks=blocks, channels=min(channels, default=0))
        check_at_least(0, num_classes=num_classes)
        self.num_classes = num_classes
        self.patch = patch
        self.multiple = patch * 2 ** (len(channels) - 1)
        self.width = width = channels[0]
        embedding = 4 * width
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(num_classes + 1, embedding) if num_classes else None
        pixels = image_channels * patch**2

        self.stem = nn.Conv2d(pixels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        skips = [width]
        for level, out in enumerate(channels):
            pairs = pairwise([width, *[out] * blocks])
            levels = (_Level(before, after, embedding, dropout, level in attention) for before, after in pairs)
            self.down.append(nn.ModuleList(levels))
            skips, width = [*skips, *[out] * blocks], out
            if level < len(channels) - 1:
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle1 = _Level(width, width, embedding, dropout, attention=True)
        self.middle2 = ResidualBlock(width, width, embedding, dropout)
        for level, out in reversed(list(enumerate(channels))):
            widths = [before + skips.pop() for before in (width, *[out] * blocks)]
            levels = (_Level(before, out, embedding, dropout, level in attention) for before in widths)
            self.up.append(nn.ModuleList(levels))
            width = out
            if level > 0:
                self.grow.append(nn.Conv2d(width, width, 3, padding=1))
        self.head = nn.Sequential(_norm(width), nn.SiLU(), _zero(nn.Conv2d(width, pixels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoise.

        Args:
            x: noisy images (B, C, H, W), about [-1, 1] plus noise.
            t: timesteps (B,), counted from 0 (least noise) as DDPM's networks do.
            class_labels: (B,) in ``0..num_classes``, the last being the null class; None means null for all.

        Returns:
            The prediction, shape of ``x``.

        Raises:
            SettingError: the image's sides are not divisible as above.
        """
        if any(side % self.multiple for side in x.shape[2:]):
            height, width = x.shape[2:]
            raise SettingError(
                f"the network's image sides must be divisible by {self.multiple}, for its patch and levels: "
                f"it cannot be used for {height}x{width}"
            )
        embedding = self.time(timestep_embedding(t, self.width).to(x.dtype))
        if self.label is not None:
            labels = torch.full_like(t, self.num_classes, dtype=torch.long) if class_labels is None else class_labels
            embedding = embedding + self.label(labels)
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]  # a ModuleList
                h = block(h, embedding)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
                skips.append(h)
        h = self.middle2(self.middle1(h, embedding), embedding)
        for level, blocks in enumerate(self.up):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.head(h), self.patch)
