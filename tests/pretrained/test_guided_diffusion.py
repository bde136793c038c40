"""Weights in the layout of improved-diffusion and guided-diffusion, against a network written by their papers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dng_lightning.errors import SettingError
from dng_lightning.modules.models import load_model
from dng_lightning.parametrization import denoised_of
from dng_lightning.pretrained import GuidedDiffusionModel

pytest.importorskip("diffusers", reason="diffusers is not installed (extra diffusers)")

WIDTHS = (32, 64)


class Block(nn.Module):
    """A residual block; ``change`` is "down", "up" or "" (its input and skip are resampled before the convolution)."""

    def __init__(self, before: int, after: int, scale_shift: bool, change: str = "") -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * WIDTHS[0], after * (1 + scale_shift)))
        convolution = nn.Conv2d(after, after, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, after), nn.SiLU(), nn.Dropout(0.1), convolution)
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.change, self.scale_shift = change, scale_shift

    def resample(self, x: Tensor) -> Tensor:
        if not self.change:
            return x
        return functional.avg_pool2d(x, 2) if self.change == "down" else functional.interpolate(x, scale_factor=2.0)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resample(self.in_layers[:2](x)))
        shown = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shown.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + shown)
        return self.skip_connection(self.resample(x)) + h


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(32, width), nn.Conv1d(width, 3 * width, 1)
        self.proj_out, self.heads, self.new_order = nn.Conv1d(width, width, 1), heads, new_order

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv, (batch, width, length) = self.qkv(self.norm(flat)), flat.shape
        if self.new_order:  # all queries, all keys, all values
            q, k, v = qkv.view(batch, 3, self.heads, width // self.heads, length).unbind(1)
        else:  # head by head
            q, k, v = qkv.view(batch, self.heads, 3, width // self.heads, length).unbind(2)
        weight = (q.transpose(2, 3) @ k / math.sqrt(width // self.heads)).softmax(-1)
        seen = (v @ weight.transpose(2, 3)).reshape(batch, width, length)
        return (flat + self.proj_out(seen)).view(x.shape)


class Convolved(nn.Module):
    """Resampling by a convolution; its name in the state dict is ``op`` on the way down, ``conv`` on the way up."""

    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.add_module("conv" if up else "op", nn.Conv2d(width, width, 3, 1 if up else 2, padding=1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0)) if self.up else self.op(x)


class First(nn.Conv2d):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class OfOpenAI(nn.Module):
    """Two levels of which the second attends."""

    def __init__(self, blocks: int, heads: int, new_order: bool, scale_shift: bool, updown: bool, **ends: int) -> None:
        super().__init__()
        width, classes, outputs = WIDTHS[0], ends.get("classes", 0), ends.get("outputs", 3)
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.label_emb = nn.Embedding(classes, 4 * width) if classes else None
        self.input_blocks, self.output_blocks = (
            nn.ModuleList([nn.ModuleList([First(3, width, 3, padding=1)])]),
            nn.ModuleList(),
        )
        kept, now = [width], width
        for level, after in enumerate(WIDTHS):
            for _ in range(blocks):
                attention = [Attention(after, heads, new_order)] if level else []
                self.input_blocks.append(nn.ModuleList([Block(now, after, scale_shift), *attention]))
                now = after
                kept.append(now)
            if level == 0:
                down = Block(now, now, scale_shift, "down") if updown else Convolved(now, up=False)
                self.input_blocks.append(nn.ModuleList([down]))
                kept.append(now)
        middle = [Block(now, now, scale_shift), Attention(now, heads, new_order), Block(now, now, scale_shift)]
        self.middle_block = nn.ModuleList(middle)
        for level, after in reversed(list(enumerate(WIDTHS))):
            for block in range(blocks + 1):
                parts: list[nn.Module] = [Block(now + kept.pop(), after, scale_shift)]
                parts += [Attention(after, heads, new_order)] if level else []
                now = after
                if level and block == blocks:
                    parts += [Block(now, now, scale_shift, "up") if updown else Convolved(now, up=True)]
                self.output_blocks.append(nn.ModuleList(parts))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, outputs, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        half = WIDTHS[0] // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        emb = emb + self.label_emb(labels) if self.label_emb is not None else emb
        kept = []
        for parts in self.input_blocks:
            for part in parts:  # type: ignore[attr-defined]
                x = part(x, emb)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, emb)
        for parts in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for part in parts:  # type: ignore[attr-defined]
                x = part(x, emb)
        return self.out(x)


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ({"blocks": 2, "heads": 4, "new_order": False, "scale_shift": True, "updown": False}, {"heads": 4}),
        ({"blocks": 1, "heads": 4, "new_order": False, "scale_shift": True, "updown": True}, {"head_channels": 16}),
        ({"blocks": 1, "heads": 2, "new_order": True, "scale_shift": False, "updown": False}, {"heads": 2}),
        (
            {"blocks": 1, "heads": 1, "new_order": False, "scale_shift": True, "updown": True, "classes": 5},
            {"heads": 1},
        ),
        (
            {"blocks": 1, "heads": 4, "new_order": False, "scale_shift": True, "updown": False, "outputs": 6},
            {"heads": 4},
        ),
    ],
    ids=["improved-diffusion", "guided-diffusion", "new attention order", "class-conditional", "learned variance"],
)
def test_the_converted_network_gives_the_same(network: dict[str, Any], settings: dict[str, Any], tmp_path: Path):
    torch.manual_seed(0)
    net = OfOpenAI(**network).eval().requires_grad_(False)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    settings = settings | {"new_attention_order": network["new_order"]}
    module = load_model(GuidedDiffusionModel(str(tmp_path / "model.pt"), 8, **settings))
    assert (module.image_shape, module.null_class, module.clip) == ((3, 8, 8), network.get("classes", 0), 1.0)
    x_t = torch.randn(2, 3, 8, 8)
    labels = torch.tensor([1, 4]) if "classes" in network else None
    with torch.no_grad():
        for t in (1, 300):
            level = module.schedule.level(t)
            output = net(x_t, torch.full((2,), t - 1), labels)[:, :3]
            wanted = denoised_of(output, x_t, level.alpha, level.sigma, "eps")
            assert torch.allclose(module(x_t, level, labels), wanted, atol=1e-4)


def test_what_the_file_does_not_say(tmp_path: Path):
    path = str(tmp_path / "model.pt")
    torch.save(OfOpenAI(1, 4, False, True, False).state_dict(), path)
    with pytest.raises(SettingError, match=r"model.pt: set heads or head_channels to the num_heads or"):
        GuidedDiffusionModel(path, 8)
    with pytest.raises(SettingError, match=r"model.pt does not say all .* by class_path GuidedDiffusionModel with"):
        load_model(path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(SettingError, match=r"model.pt holds no U-Net of guided-diffusion"):
        load_model(GuidedDiffusionModel(path, 8, heads=4))
