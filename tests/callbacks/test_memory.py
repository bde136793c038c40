import sys

import pytest
import torch
from dng_lightning.callbacks.memory import PeakMemory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak")
def test_a_peak_is_over_by_the_next_one():
    before, size = PeakMemory(CPU), 200  # MB
    start = before.mb()
    torch.ones(size, 2**18)  # and freed
    peak, after = before.mb(), PeakMemory(CPU).mb()
    assert start is not None
    assert peak is not None
    assert after is not None
    assert peak > start + 0.9 * size
    assert after < peak - 0.9 * size


def test_where_nobody_counts_there_is_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr("dng_lightning.callbacks.memory.RESET", tmp_path / "none")
    assert PeakMemory(CPU).mb() is None
