"""The fastest precision of a device, and the memory format that goes with it."""

from pathlib import Path

import pytest
import torch
from running import Dng
from torch import Tensor

from dng_lightning.data.pixels import from_png, to_float
from dng_lightning.networks.precision import BF16, FP32, fastest_precision, set_memory_format

CPU = torch.device("cpu")


@pytest.mark.parametrize(("native", "expected"), [(True, BF16), (False, FP32)])
def test_bfloat16_where_the_processor_has_it(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native)
    assert fastest_precision(CPU) == expected
    assert fastest_precision(torch.device("mps")) == FP32


@pytest.mark.parametrize(("given", "is_contiguous"), [(BF16, True), ("bf16-true", True), (FP32, False)])
def test_weights_are_contiguous_in_bfloat16_on_a_cpu(given: str, is_contiguous: bool):
    net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    set_memory_format(net, CPU, given)
    assert net.weight.is_contiguous() == is_contiguous
    assert net.weight.is_contiguous(memory_format=torch.channels_last) != is_contiguous


def test_half_precision_keeps_most_images(dng: Dng, tmp_path: Path):
    for precision in (BF16, FP32):
        few = ["--data.num_samples=4", "--model.steps=10", f"--trainer.precision={precision}"]
        dng("predict", *few, f"--trainer.default_root_dir={tmp_path / precision}")
    one, other = (torch.stack([image(tmp_path / name, seed) for seed in range(4)]) for name in (BF16, FP32))
    assert not torch.equal(one, other)  # another precision indeed
    assert (one - other).square().flatten(1).mean(1).sqrt().median() < 0.1  # of a range of 2


def image(folder: Path, seed: int) -> Tensor:
    return to_float(from_png(folder / f"{seed:08d}.png"))
